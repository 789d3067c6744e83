"""Heads of requests: reads each by the one policy, and knows again the fields that a client repeats.

A client mostly repeats its fields, whatever it asks for. So the bytes after its last request line are remembered, up to
2 KiB, and what they were found to say: if they come again, only the line is read, and not even that if the client asks
for the same again, as one that polls does. That holds for `plain` fields alone, whose meaning ends with the head, so
that the parser misses nothing it would have to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from procmgr.worker.protocols.bodies import Body, ChunkedBody, SizedBody
from procmgr.worker.protocols.framing import (
    Refused,
    Request,
    check_number,
    check_partial,
    classify,
    read_fields,
    read_line,
    read_usual_line,
    without_underscores,
)

if TYPE_CHECKING:
    from procmgr.worker.protocols.context import Limits
    from procmgr.worker.protocols.framing import Codec

_SLASH: Final = ord("/")
_REMEMBERED: Final = 2048
"""Up to this size the fields of the last request are remembered."""


class HeadReader:
    """Reads the heads of one connection."""

    __slots__ = ("_codec", "_hosts", "_known", "_known_fields", "_limits")

    def __init__(self, codec: Codec, *, limits: Limits, hosts: set[bytes]) -> None:
        """Take the connection's parser; `hosts` remembers valid values of Host for all connections."""
        self._codec = codec
        self._limits = limits
        self._hosts = hosts
        self._known_fields = b""
        self._known: Request

    def repeated(self, head: bytes) -> Request | None:
        """Return the request in a head that differs from the last one in its line at most, else None."""
        fields = self._known_fields
        if not fields or not head.endswith(fields):
            return None
        known = self._known
        if head == known.head:
            return known  # which nobody changes
        # The line is whole, so what follows it is all of `fields` and nothing else.
        request = read_usual_line(head[: -len(fields)], self._limits.request_line)
        if request is None or request.version != b"1.1":
            return None
        request.head = head
        request.headers = known.headers
        request.keep_alive = known.keep_alive
        request.forwarded = known.forwarded
        request.content_length = None
        request.chunked = request.expect = False
        request.plain = True
        if len(head) <= _REMEMBERED:
            self._known = request
        return request

    def parse(self, head: bytes) -> Request:
        """Return the request in a head. Raises `Refused`."""
        try:
            return self._parse(head)
        except Refused:
            check_partial(head, 0, self._limits.request_line, self._limits.head)  # what came first is what counts
            raise

    def _parse(self, head: bytes) -> Request:
        limits, hosts = self._limits, self._hosts
        request = read_line(head, limits.request_line)
        if len(head) > limits.head:
            raise Refused(431, "head too large")
        try:
            headers = self._codec.read_head(request)
        except Refused as refusal:
            raise classify(request, hosts, limits.fields, refusal) from None
        check_number(headers, limits.fields)
        if b"_" in head:
            headers = without_underscores(headers, every=not limits.underscores)
        read_fields(request, headers, hosts)
        self._remember(request, head)
        return request

    def body(self, request: Request) -> Body:
        """Return what reads the body behind a head."""
        if request.content_length:
            return SizedBody(request.content_length)
        limits = self._limits
        return ChunkedBody(max_framing=limits.chunk_framing, max_trailers=limits.trailers, max_body=limits.body_size)

    def _remember(self, request: Request, head: bytes) -> None:
        """Remember the fields of a head, so that they are not parsed again."""
        fields = b""
        if request.plain and request.version == b"1.1" and request.target[0] == _SLASH:
            start = head.find(b"\r\n")
            # Known fields after the longest line are still within the limit, so nobody has to look again.
            if len(head) - start <= min(_REMEMBERED, self._limits.head - self._limits.request_line):
                fields = head[start:]
        self._known_fields, self._known = fields, request
