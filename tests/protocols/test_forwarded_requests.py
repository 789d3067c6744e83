"""What a proxy tells reaches the application and the access log, from trusted peers only."""

from __future__ import annotations

import pytest
from support.wire import responding, run, serving

from procmgr.worker.cycle import Cycle
from procmgr.worker.forwarded import Forwarding

TOLD = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.%d\r\nX-Forwarded-Proto: https\r\n\r\n"
BARE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(params=["httptools", "h11"])
def codec(request):
    return request.param


class Access:
    """Keeps what would be written."""

    cycle = Cycle

    def __init__(self):
        self.lines = []

    def prefix(self, client):
        return client[0].encode()

    def record(self, prefix, cycle, root_path):
        self.lines.append((prefix.decode(), cycle.status))

    def flush(self):
        pass


def seen(codec, *requests, trusted):
    """Return (client, scheme) of each scope, and the access log's clients, for requests on one connection."""
    scopes = []
    access = Access()

    async def app(scope, receive, send):
        scopes.append((scope["client"][0], scope["scheme"]))
        await responding()(scope, receive, send)

    async def main():
        forwarding = Forwarding(trusted=trusted, fields=("x-forwarded-for", "x-forwarded-proto"))
        async with serving(app, codec, forwarding=forwarding, access=access) as server:
            client = await server.connect()
            for request in requests:
                client.send(request)
                await client.reply()

    run(main())
    assert [status for _, status in access.lines] == [200] * len(requests)
    return scopes, [client for client, _ in access.lines]


def test_a_trusted_peers_word_is_taken_for_each_request_by_itself(codec):
    requests = (TOLD % 1, TOLD % 1, BARE, TOLD % 2, BARE)
    scopes, logged = seen(codec, *requests, trusted=["127.0.0.1"])
    first, second, none = ("192.0.2.1", "https"), ("192.0.2.2", "https"), ("127.0.0.1", "http")
    assert scopes == [first, first, none, second, none]
    assert logged == [client for client, _ in scopes]


def test_another_peers_word_is_only_a_header(codec):
    scopes, logged = seen(codec, TOLD % 1, trusted=["10.0.0.0/8"])
    assert scopes == [("127.0.0.1", "http")]
    assert logged == ["127.0.0.1"]
