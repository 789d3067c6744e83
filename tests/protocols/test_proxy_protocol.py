"""The PROXY protocol on real sockets: in one piece and byte by byte, before TLS, and everything that is refused."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tls import Authority

from procmgr.config.resolve import build
from procmgr.logs import LineWriter, LogSetup
from procmgr.scoreboard import detached_row
from procmgr.sockets import TCP, bind
from procmgr.tls import Contexts, Material, Options, Pair
from procmgr.worker.proxy_protocol import MAX_BLOCK, SIGNATURE, ProxyError, block_size, read_block, read_line
from procmgr.worker.server import Server

GET = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n\r\n"
V1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 80\r\n"


def block(command=0x21, family=0x11, addresses=b"", extra=b""):
    return struct.pack("!12sBBH", SIGNATURE, command, family, len(addresses) + len(extra)) + addresses + extra


def v4(client="192.0.2.1", server="192.0.2.2", ports=(5000, 80)):
    return socket.inet_aton(client) + socket.inet_aton(server) + struct.pack("!HH", *ports)


def v6(client="2001:db8::1", server="2001:db8::2", ports=(5000, 80)):
    pton = socket.inet_pton
    return pton(socket.AF_INET6, client) + pton(socket.AF_INET6, server) + struct.pack("!HH", *ports)


V2 = block(addresses=v4())
TOLD = {
    "1, TCP4": (V1, ("192.0.2.1", 5000), ("192.0.2.2", 80)),
    "1, TCP6": (b"PROXY TCP6 2001:db8::1 2001:DB8::2 1 65535\r\n", ("2001:db8::1", 1), ("2001:db8::2", 65535)),
    "2, TCP4": (V2, ("192.0.2.1", 5000), ("192.0.2.2", 80)),
    "2, TCP6": (block(family=0x21, addresses=v6()), ("2001:db8::1", 5000), ("2001:db8::2", 80)),
    "2, with values behind": (
        block(addresses=v4(), extra=b"\x04\x03\xe8" + bytes(1000)),
        ("192.0.2.1", 5000),
        ("192.0.2.2", 80),
    ),
}
UNTOLD = {
    "1, UNKNOWN": b"PROXY UNKNOWN\r\n",
    "1, UNKNOWN with more": b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n",
    "2, LOCAL": block(command=0x20, family=0x00),
    "2, LOCAL with addresses": block(command=0x20, addresses=v4()),
    "2, UNSPEC": block(family=0x00),
    "2, a Unix socket": block(family=0x31, addresses=bytes(216)),
}
TLS = b"\x20\x00\x05\x01\x00\x00\x00\x00"
PADDED = b"\x04\x00\x03\x20\x00\x01"
SCHEMES = {
    "over TLS": (TLS, "https"),
    "over TLS, with values around": (PADDED + TLS + PADDED, "https"),
    "over TLS, with values inside": (b"\x20\x00\x0f\x07\x00\x00\x00\x00\x21\x00\x07TLSv1.3", "https"),
    "not over TLS": (b"\x20\x00\x05\x06\x00\x00\x00\x00", "http"),
    "other values alone": (PADDED, "http"),
    "cut short": (b"\x20\x00\x06\x01\x00\x00\x00\x00", "http"),
    "empty": (b"\x20\x00\x00", "http"),
    "half a value": (b"\x20\x00", "http"),
    "behind one that is cut short": (b"\x04\xff\xff" + TLS, "http"),
}
REFUSED = {
    "none": GET,
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
    "1, another family": b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "1, lower case": b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "1, an address of the other family": b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
    "1, no address": b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
    "1, a port too high": b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
    "1, a bare LF": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n" + GET,
    "1, without an end": b"PROXY TCP4 " + b"1" * 200,
    "1, one byte too long": b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r\n",
    "2, another version": SIGNATURE + b"\x11\x11\x00\x0c" + v4(),
    "2, another command": block(command=0x22, addresses=v4()),
    "2, datagrams": block(family=0x12, addresses=v4()),
    "2, addresses too short": block(addresses=v4()[:-1]),
    "2, too long": struct.pack("!12sBBH", SIGNATURE, 0x21, 0x11, MAX_BLOCK + 1),
    "2, a broken signature": SIGNATURE[:-1] + b"\r" + bytes(20),
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


async def app(scope, receive, send):
    text = f"{scope['client'][0]} {scope['client'][1]} {scope['server'][0]} {scope['server'][1]} {scope['scheme']}"
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": text.encode()})


class Behind:
    """A worker's server without its process, behind a proxy."""

    def __init__(self, front=None, app=app, **values):
        self.listener = bind(TCP("127.0.0.1", 0), backlog=128)
        self.port = self.listener.address.port
        self.server = Server(
            app=app,
            settings=build({"app": "test:app", "lifespan": "off", "proxy_protocol": True, **values}),
            listeners=[self.listener],
            row=detached_row(),
            logs=LogSetup(access=None, access_via_logging=False, access_colors=False, error_writer=LineWriter(2)),
            on_request_limit=print,
            tls=front,
        )

    async def __aenter__(self):
        await self.server.start()
        self.life = asyncio.create_task(self.server.serve_until_drained())
        return self

    async def __aexit__(self, *_):
        self.server.request_drain("quick", asyncio.get_running_loop().time() + 5)
        await self.life

    async def say(self, *pieces):
        """Return all that is answered to pieces that leave one by one."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


def run(coroutine):
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(asyncio.wait_for(coroutine, 20))


async def answered(*pieces, **values):
    async with Behind(**values) as behind:
        return (await behind.say(*pieces)).partition(b"\r\n\r\n")[2].decode()


def each_byte(data):
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize("name", TOLD)
@pytest.mark.parametrize("cut", ["whole", "behind the header", "byte by byte"])
def test_the_client_is_who_the_header_says(name, cut):
    header, client, server = TOLD[name]
    pieces = {"whole": [header + GET], "behind the header": [header, GET], "byte by byte": each_byte(header + GET)}
    expected = f"{client[0]} {client[1]} {server[0]} {server[1]} http"
    assert run(answered(*pieces[cut])) == expected


@pytest.mark.parametrize("name", UNTOLD)
def test_without_addresses_the_connections_own_are_kept(name):
    text = run(answered(UNTOLD[name] + GET, forwarded_headers=()))
    assert re.fullmatch(r"127\.0\.0\.1 \d+ 127\.0\.0\.1 \d+ http", text)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("addresses", [{"addresses": v4()}, {"family": 0}, {"family": 0x31, "addresses": bytes(216)}])
def test_the_scheme_is_that_of_the_clients_own_connection(name, addresses):
    extra, scheme = SCHEMES[name]
    assert run(answered(block(**addresses, extra=extra) + GET, forwarded_headers=())).endswith(f" {scheme}")


def test_a_websocket_over_the_proxys_tls_is_wss():
    scopes = []

    async def websocket(scope, receive, send):
        scopes.append(scope)

    opening = (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    run(answered(block(addresses=v4(), extra=TLS) + opening, app=websocket))
    assert scopes[0]["scheme"] == "wss"
    assert scopes[0]["client"] == ("192.0.2.1", 5000)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_header_is_closed_without_an_answer_and_said_in_one_line(name, caplog):
    async def main():
        async with Behind() as behind:
            assert await behind.say(REFUSED[name]) == b""

    with caplog.at_level(logging.WARNING, "procmgr.error"):
        logging.getLogger("procmgr.error").propagate = True
        run(main())
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("127.0.0.1: closed: ")


def test_a_peer_that_is_not_trusted_is_closed_whatever_it_says():
    assert run(answered(V2 + GET, forwarded_allow_ips=("192.0.2.7",))) == ""


def test_forwarding_fields_are_judged_by_the_client_that_the_header_names():
    assert run(answered(V1 + GET)).startswith("192.0.2.1 ")
    assert run(answered(V1 + GET, forwarded_allow_ips=("127.0.0.1", "192.0.2.1"))).startswith("203.0.113.9 ")


def test_a_header_that_does_not_come_in_time_is_closed():
    async def main():
        async with Behind(timeout_request_head=0.05) as behind:
            assert await behind.say(V2[:10]) == b""

    run(main())


def test_a_stop_does_not_wait_for_headers_that_do_not_come():
    async def main():
        async with Behind() as behind:
            _, writer = await asyncio.open_connection("127.0.0.1", behind.port)
            writer.write(b"PROXY ")
            loop = asyncio.get_running_loop()
            begin = loop.time()
        taken = loop.time() - begin
        writer.close()
        return taken

    assert run(main()) < 5  # the header has ten


def test_tls_begins_behind_the_header(authority):
    files = authority.write("site", authority.issue("a.test"))
    options = Options(pairs=(Pair(files.certificate, files.key),))
    material = Material.read(options.pairs, None)
    front = Contexts(options, material).front
    material.close()

    async def main(header):
        async with Behind(front) as behind:
            sock = socket.create_connection(("127.0.0.1", behind.port))
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, header)
            reader, writer = await asyncio.open_connection(sock=sock, ssl=authority.client(), server_hostname="a.test")
            writer.write(GET)
            answer = await reader.read()
            writer.close()
            return answer.partition(b"\r\n\r\n")[2].decode()

    for header in (V1, V2):
        assert run(main(header)) == "192.0.2.1 5000 192.0.2.2 80 https"


@given(st.binary(max_size=200))
def test_whatever_the_bytes_are_it_is_an_answer_or_a_refusal(data):
    for read in (
        lambda: read_line(b"PROXY " + data + b"\r\n"),
        lambda: block_size(SIGNATURE + (data + bytes(4))[:4]),
        lambda: read_block(SIGNATURE + (b"\x21" + data + bytes(4))[:4], data),
    ):
        with suppress(ProxyError):
            read()


def test_the_errors_are_not_those_of_tls():
    assert not issubclass(ProxyError, ssl.SSLError)
