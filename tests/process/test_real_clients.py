"""Clients that people use, against the real daemon through both parsers."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import shutil
import subprocess

import httpx
import pytest
from support import browsers

PATIENCE = 60
BODY = bytes(range(256)) * 8192  # 2 MiB
DIGEST = hashlib.sha256(BODY).hexdigest()
STREAM = "".join(f"{number}\n" for number in range(50)).encode()


def parts():
    for begin in range(0, len(BODY), 100_000):
        yield BODY[begin : begin + 100_000]


@pytest.fixture(params=["httptools", "h11"])
def daemon(serve, request):
    return serve("--http", request.param, app="support.apps.mirror_app:app")


@pytest.fixture
def url(daemon):
    return f"http://127.0.0.1:{daemon.port}"


# -- browsers --------------------------------------------------------------------------------------------------------


def fields_of(told):
    return [(name, value) for name, value in told["headers"] if name != "host"]


def test_what_browsers_send_for_pages_and_forms_reaches_the_application_as_it_is(daemon):
    for browser, page in browsers.PAGES.items():
        sock = daemon.connect().sock
        stream = sock.makefile("rb")
        form = browsers.FORMS[browser]
        body = b"a=b&c=%C3%A4"
        for line, fields, content in (
            ("GET /page?x=%20&y=a+b HTTP/1.1", page, b""),
            ("GET /other HTTP/1.1", page, b""),  # its fields are known again
            ("POST /form HTTP/1.1", form, body),
            ("GET /page HTTP/1.1", page, b""),
        ):
            sock.sendall(browsers.request(line, fields, content))
            assert stream.readline() == b"HTTP/1.1 200 OK\r\n", browser
            head = b"".join(iter(stream.readline, b"\r\n"))
            told = json.loads(stream.read(int(re.search(rb"content-length: (\d+)", head)[1])))
            sent = [(name.lower(), value.format(length=len(content))) for name, value in fields]
            assert fields_of(told) == sent
            assert (told["length"], told["digest"]) == (len(content), hashlib.sha256(content).hexdigest())
        stream.close()


@pytest.mark.parametrize("ws", ["websockets", "wsproto"])
def test_handshakes_of_browsers_are_accepted(serve, ws):
    daemon = serve("--ws", ws, app="support.apps.mirror_app:app")
    for browser, fields in browsers.WEBSOCKETS.items():
        sock = daemon.connect().sock
        sock.sendall(browsers.request("GET /chat HTTP/1.1", fields))
        with sock.makefile("rb") as stream:
            assert stream.readline().startswith(b"HTTP/1.1 101 "), browser
            head = b"".join(iter(stream.readline, b"\r\n")).decode().lower()
            assert f"sec-websocket-accept: {browsers.ACCEPTED}".lower() in head
            assert "sec-websocket-extensions: permessage-deflate" in head


# -- curl ------------------------------------------------------------------------------------------------------------

CURL = shutil.which("curl")
with_curl = pytest.mark.skipif(CURL is None, reason="curl is not installed")


def curl(*arguments):
    """Return what curl prints, and what it says of its conversation."""
    done = subprocess.run([CURL, "-sSv", "--max-time", str(PATIENCE), *arguments], capture_output=True, check=True)
    return done.stdout, done.stderr.decode(errors="replace")


@pytest.fixture
def upload(tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(BODY)
    return f"@{path}"


@with_curl
def test_curl_keeps_its_connection(url):
    said = curl("-w", "%{http_code} %{num_connects}\n", "-o", "/dev/null", f"{url}/a", "-o", "/dev/null", f"{url}/b")
    assert said[0] == b"200 1\n200 0\n"


@with_curl
def test_curl_waits_for_100_before_it_uploads(url, upload):
    out, said = curl("-H", "Expect: 100-continue", "--data-binary", upload, f"{url}/up")
    assert json.loads(out)["digest"] == DIGEST
    assert "< HTTP/1.1 100 Continue" in said
    assert "Done waiting for 100-continue" not in said, "it was asked, and did not give up waiting"


@with_curl
def test_curl_uploads_in_chunks(url, upload):
    out, _ = curl("-H", "Transfer-Encoding: chunked", "-H", "Expect:", "--data-binary", upload, f"{url}/up")
    told = json.loads(out)
    assert told["digest"] == DIGEST
    assert ["transfer-encoding", "chunked"] in told["headers"]


@with_curl
def test_curl_speaks_1_0(url, upload):
    out, said = curl("--http1.0", "--data-binary", upload, f"{url}/up")
    assert (json.loads(out)["version"], json.loads(out)["digest"]) == ("1.0", DIGEST)
    assert "100 Continue" not in said
    assert curl("--http1.0", f"{url}/stream")[0] == STREAM


@with_curl
def test_curl_asks_for_a_head_alone(url):
    out, _ = curl("-I", f"{url}/a", f"{url}/b")
    assert out.count(b"HTTP/1.1 200 OK") == 2


@with_curl
def test_curl_that_offers_http_2_goes_on_with_1_1_and_its_body_is_not_lost(url, upload):
    out, said = curl("--http2", f"{url}/a", "--next", "-sS", "--http2", "--data-binary", upload, f"{url}/up")
    if "Upgrade: h2c" not in said:
        pytest.skip("this curl cannot offer HTTP/2")
    first, _, second = out.partition(b"}")
    assert json.loads(first + b"}")["path"] == "/a"
    assert json.loads(second)["digest"] == DIGEST
    assert "101 Switching" not in said


# -- Python ----------------------------------------------------------------------------------------------------------


def test_httpx_uploads_streams_and_keeps_its_connection(url):
    with httpx.Client(timeout=PATIENCE, trust_env=False) as client:
        assert client.post(f"{url}/up", content=BODY).json()["digest"] == DIGEST
        assert client.post(f"{url}/up", content=parts()).json()["digest"] == DIGEST
        assert client.get(f"{url}/stream").content == STREAM
        assert client.head(f"{url}/a").headers["content-type"] == "application/json"
        told = client.get(f"{url}/ä", params={"q": "a b"}).json()
        assert (told["path"], told["query"]) == ("/ä", "q=a+b")
        reply = client.post(f"{url}/up", files={"file": ("a.bin", io.BytesIO(BODY))})
        assert reply.json()["length"] > len(BODY)


def test_requests_uploads_streams_and_keeps_its_connection(url):
    requests = pytest.importorskip("requests")
    with requests.Session() as session:
        session.trust_env = False
        assert session.post(f"{url}/up", data=BODY, timeout=PATIENCE).json()["digest"] == DIGEST
        told = session.post(f"{url}/up", data=parts(), timeout=PATIENCE).json()
        assert told["digest"] == DIGEST
        assert ["transfer-encoding", "chunked"] in told["headers"]
        with session.get(f"{url}/stream", stream=True, timeout=PATIENCE) as reply:
            assert b"".join(reply.iter_content(7)) == STREAM
        reply = session.post(f"{url}/up", files={"file": BODY}, timeout=PATIENCE)
        assert reply.json()["length"] > len(BODY)


def test_aiohttp_asks_many_things_at_once(url):
    aiohttp = pytest.importorskip("aiohttp")

    async def chunks():
        for part in parts():
            yield part

    async def main():
        limit = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(timeout=limit) as session:

            async def ask(number):
                async with session.post(f"{url}/{number}", data=b"%d" % number) as reply:
                    return (await reply.json(content_type=None))["path"]

            assert await asyncio.gather(*map(ask, range(50))) == [f"/{number}" for number in range(50)]
            async with session.post(f"{url}/up", data=chunks(), expect100=True) as reply:
                assert (await reply.json())["digest"] == DIGEST
            async with session.get(f"{url}/stream") as reply:
                assert await reply.read() == STREAM

    asyncio.run(main())


@pytest.mark.parametrize("ws", ["websockets", "wsproto"])
@pytest.mark.parametrize("compress", [0, 15], ids=["plain", "deflated"])
def test_aiohttp_converses_over_a_websocket(serve, ws, compress):
    aiohttp = pytest.importorskip("aiohttp")
    daemon = serve("--ws", ws, app="support.apps.mirror_app:app")

    async def main():
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session,
            session.ws_connect(f"http://127.0.0.1:{daemon.port}/chat", compress=compress) as chat,
        ):
            assert bool(chat.compress) == bool(compress)
            for text in ("hello", "", "\u20ac" * 50_000):
                await chat.send_str(text)
                assert await chat.receive_str() == text
            await chat.send_bytes(BODY[:500_000])
            assert await chat.receive_bytes() == BODY[:500_000]
            await chat.ping(b"?")
            await chat.close(code=4000)
            assert chat.close_code == 4000

    asyncio.run(main())


# -- load ------------------------------------------------------------------------------------------------------------

H2LOAD = shutil.which("h2load")


@pytest.mark.skipif(H2LOAD is None, reason="h2load is not installed (Debian's nghttp2-client)")
def test_h2load_has_every_request_answered(url):
    done = subprocess.run(
        [H2LOAD, "--h1", "-n", "2000", "-c", "20", "-t", "1", f"{url}/a?b=c"],
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    assert b"2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout
    assert b"2000 2xx" in done.stdout
