"""The limit: a bare uvloop protocol with an httptools parser and one fixed answer.

Frozen on purpose: it is the yardstick by which rows of different runs are compared.
"""

import asyncio
import sys

import httptools
import uvloop

ANSWER = (
    b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: bare\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 14\r\n\r\nHello, world!\n"
)


class Bare(asyncio.Protocol):
    """Parse each request and answer it at its end."""

    def connection_made(self, transport):
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_url(self, url):
        self.url = url

    def on_header(self, name, value):
        pass

    def on_message_complete(self):
        self.transport.write(ANSWER)


async def serve(host, port):
    server = await asyncio.get_running_loop().create_server(Bare, host, port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
