"""HTTPS from Python: in the caller's own loop, with a certificate or with a context of the caller's."""

from __future__ import annotations

import asyncio
import json
import ssl

import httpx
import pytest
from support.embedded import serving
from support.tls import Authority

from procmgr import Config, Server
from procmgr.errors import AppError, ConfigError


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    told = {"scheme": scope["scheme"], "version": scope["extensions"]["tls"]["tls_version"]}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})


def ask(authority, **keywords):
    async def main():
        async with serving(app, **keywords) as server:
            (url,) = server.urls
            assert url.startswith("https://127.0.0.1:")
            async with httpx.AsyncClient(verify=authority.client()) as client:
                return (await client.get(url)).json()

    return asyncio.run(main())


def test_a_server_in_the_callers_loop_speaks_https(authority):
    files = authority.write("site", authority.issue("127.0.0.1"))
    told = ask(authority, ssl_certfile=files.certificate, ssl_keyfile=[files.key])
    assert told == {"scheme": "https", "version": 0x0304}


@pytest.mark.parametrize("usual", [True, False])
def test_a_factory_makes_the_context(authority, usual):
    leaf = authority.issue("127.0.0.1")
    files = authority.write("site", leaf)

    def make(config, default):
        if usual:
            assert config.ssl_certfile == (str(files.certificate),)
            context = default()
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            leaf.configure_cert(context)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context

    named = {"ssl_certfile": files.certificate, "ssl_keyfile": files.key} if usual else {}
    assert ask(authority, ssl_context_factory=make, **named) == {"scheme": "https", "version": 0x0303}


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"ssl_certfile": "none.pem"}, ConfigError, "ssl_certfile: cannot read .*none.pem: No such file"),
        ({"ssl_keyfile": "none.pem"}, ConfigError, "there is a key but no certificate"),
        ({"ssl_context_factory": lambda config, usual: usual()}, AppError, "raised ValueError"),
        ({"ssl_context_factory": lambda config, usual: None}, AppError, "returned a NoneType"),
    ],
)
def test_a_mistake_is_an_error_of_serve(keywords, error, text):
    with pytest.raises(error, match=text):
        asyncio.run(Server(Config(app, port=0, **keywords)).serve())
