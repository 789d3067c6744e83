"""What browsers send over plain HTTP/1.1: the fields of a page, of a form and of a WebSocket, in their order."""

from __future__ import annotations

CHROMIUM = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0"
MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)"
SAFARI = MAC + " AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Safari/605.1.15"
HINTS = [
    ("sec-ch-ua", '"Google Chrome";v="131", "Chromium";v="131", "Not_A Brand";v="24"'),
    ("sec-ch-ua-mobile", "?0"),
    ("sec-ch-ua-platform", '"Linux"'),
]
COOKIE = ("Cookie", "session=6f7a; theme=dark; _ga=GA1.1.1234567890.1700000000; consent=%7B%22a%22%3Atrue%7D")

PAGES = {
    "Chromium": [
        ("Connection", "keep-alive"),
        ("Cache-Control", "max-age=0"),
        *HINTS,
        ("Upgrade-Insecure-Requests", "1"),
        ("User-Agent", CHROMIUM),
        (
            "Accept",
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8",
        ),
        ("Sec-Fetch-Site", "none"),
        ("Sec-Fetch-Mode", "navigate"),
        ("Sec-Fetch-User", "?1"),
        ("Sec-Fetch-Dest", "document"),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        ("Accept-Language", "de-DE,de;q=0.9,en-US;q=0.8,en;q=0.7"),
        COOKIE,
    ],
    "Firefox": [
        ("User-Agent", FIREFOX),
        ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("Accept-Language", "en-US,en;q=0.5"),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        ("DNT", "1"),
        ("Sec-GPC", "1"),
        ("Connection", "keep-alive"),
        COOKIE,
        ("Upgrade-Insecure-Requests", "1"),
        ("Sec-Fetch-Dest", "document"),
        ("Sec-Fetch-Mode", "navigate"),
        ("Sec-Fetch-Site", "none"),
        ("Sec-Fetch-User", "?1"),
        ("Priority", "u=0, i"),
    ],
    "Safari": [
        ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("Sec-Fetch-Site", "none"),
        COOKIE,
        ("Sec-Fetch-Dest", "document"),
        ("Accept-Language", "en-GB,en;q=0.9"),
        ("Sec-Fetch-Mode", "navigate"),
        ("User-Agent", SAFARI),
        ("Accept-Encoding", "gzip, deflate"),
        ("Connection", "keep-alive"),
        ("Upgrade-Insecure-Requests", "1"),
    ],
}

FORMS = {
    "Chromium": [
        ("Connection", "keep-alive"),
        ("Content-Length", "{length}"),
        *HINTS,
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Origin", "http://localhost:8000"),
        ("User-Agent", CHROMIUM),
        ("Accept", "*/*"),
        ("Referer", "http://localhost:8000/form?a=b"),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        COOKIE,
    ],
    "Firefox": [
        ("User-Agent", FIREFOX),
        ("Accept", "*/*"),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Content-Length", "{length}"),
        ("Origin", "null"),
        ("Connection", "keep-alive"),
        ("Priority", "u=0"),
    ],
    "Safari": [
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Origin", "http://localhost:8000"),
        ("Accept", "*/*"),
        ("User-Agent", SAFARI),
        ("Content-Length", "{length}"),
        ("Connection", "keep-alive"),
        ("Accept-Encoding", "gzip, deflate"),
    ],
}

WEBSOCKETS = {
    "Chromium": [
        ("Connection", "Upgrade"),
        ("Pragma", "no-cache"),
        ("Cache-Control", "no-cache"),
        ("User-Agent", CHROMIUM),
        ("Upgrade", "websocket"),
        ("Origin", "http://localhost:8000"),
        ("Sec-WebSocket-Version", "13"),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        COOKIE,
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
    ],
    "Firefox": [
        ("User-Agent", FIREFOX),
        ("Accept", "*/*"),
        ("Sec-WebSocket-Version", "13"),
        ("Origin", "http://localhost:8000"),
        ("Sec-WebSocket-Extensions", "permessage-deflate"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "websocket"),
    ],
    "Safari": [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Origin", "http://localhost:8000"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Extensions", "permessage-deflate"),
        ("User-Agent", SAFARI),
    ],
}
ACCEPTED = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""What answers that key (RFC 6455 section 1.3)."""


def request(line: str, fields: list[tuple[str, str]], body: bytes = b"") -> bytes:
    """Return the request as it is on the wire; Host comes first, as it does in all three."""
    lines = [line, "Host: localhost:8000", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join([*lines, "", ""]).format(length=len(body)).encode() + body
