"""FastAPI, Starlette and Django applications behind the real daemon with two workers, through both parsers."""

from __future__ import annotations

import hashlib
import itertools
import json

import pytest

NUMBERS = "".join(f"{number}\n" for number in range(100)).encode()

pytestmark = pytest.mark.parametrize("parser", ["httptools", "h11"])


def ask(daemon, method, path, body=None, **headers):
    """Return status, headers and body of a request on a fresh connection."""
    connection = daemon.connect()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body=body, headers=fields)
    response, content = connection.answer()
    return response.status, response.headers, content


def test_a_fastapi_application_is_served(serve, parser):
    pytest.importorskip("fastapi")
    daemon = serve("-w", "2", "--http", parser, app="support.apps.fastapi_app:app")
    assert json.loads(ask(daemon, "GET", "/")[2]) == {"greeting": "hello"}
    item = json.dumps({"name": "pen", "price": 1.5})
    sent = {"Content_Type": "application/json", "X_Token": "t"}
    status, _, body = ask(daemon, "POST", "/items/7", item, **sent)
    assert (status, json.loads(body)) == (200, {"number": 7, "name": "pen", "price": 1.5, "token": "t"})
    assert ask(daemon, "POST", "/items/seven", item, **sent)[0] == 422
    assert json.loads(ask(daemon, "GET", "/sync")[2]) == {"main_thread": False}
    assert ask(daemon, "GET", "/teapot")[0] == 418
    assert ask(daemon, "GET", "/later")[0] == 200
    assert ask(daemon, "GET", "/stream")[2] == NUMBERS
    daemon.reload()
    assert json.loads(ask(daemon, "GET", "/")[2]) == {"greeting": "hello"}
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


def test_a_starlette_application_is_served(serve, parser):
    pytest.importorskip("starlette")
    from support.apps.starlette_app import FILE_BYTES

    daemon = serve("-w", "2", "--http", parser, app="support.apps.starlette_app:app")
    status, headers, body = ask(daemon, "GET", "/")
    assert (status, headers["x-stamp"], body) == (200, "GET", b"hello")
    echoed = json.loads(ask(daemon, "POST", "/echo?a=1", b"data")[2])
    assert echoed == {
        "method": "POST",
        "path": "/echo",
        "query": "a=1",
        "body": "data",
        "client": "127.0.0.1",
        "started": True,
    }
    assert ask(daemon, "POST", "/upload", bytes(1_000_000))[2] == b"1000000"
    assert ask(daemon, "GET", "/stream")[2] == NUMBERS
    assert len(ask(daemon, "GET", "/file")[2]) == FILE_BYTES
    assert ask(daemon, "GET", "/sub/inner")[2] == b"/sub|http://localhost/sub/inner"
    assert ask(daemon, "GET", "/nowhere")[0] == 404
    assert "Traceback" not in daemon.log
    assert ask(daemon, "GET", "/broken")[0] == 500
    daemon.logged("broken on purpose")
    assert daemon.stop() == 0


FILE = bytes(range(256)) * 2048 + b"\r\n--edge\r"  # almost a boundary, and more than is kept in memory
FORM = b"name=pen&price=1%2C5+%E2%82%AC&tag=a&tag="
PART = b'--edge\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
MULTIPART = b"%b%b--edge--\r\n" % (
    PART % (b"note", b"", "h\u00e9".encode()),
    PART % (b"photo", b'; filename="a b.bin"\r\nContent-Type: image/x-test', FILE),
)
FORMS = {
    "application/x-www-form-urlencoded": (FORM, [["name", "pen"], ["price", "1,5 \u20ac"], ["tag", "a"], ["tag", ""]]),
    "multipart/form-data; boundary=edge": (
        MULTIPART,
        [
            ["note", "h\u00e9"],
            ["photo", "a b.bin", "image/x-test", len(FILE), hashlib.sha256(FILE).hexdigest()],
        ],
    ),
}


def in_pieces(body):
    """Yield a body in pieces of many lengths, so that they end anywhere in it."""
    at = 0
    for length in itertools.cycle((1, 7, 1000, 65_536, 3)):
        if at >= len(body):
            return
        yield body[at : at + length]
        at += length


def test_starlette_parses_forms_and_uploads_with_a_length_and_in_chunks(serve, parser):
    pytest.importorskip("python_multipart")
    daemon = serve("--http", parser, app="support.apps.starlette_app:app")
    connection = daemon.connect()
    for kind, (body, fields) in FORMS.items():
        for chunked in (False, True):
            headers = {"Content-Type": kind, **({"Transfer-Encoding": "chunked"} if chunked else {})}
            sent = in_pieces(body) if chunked else body
            connection.request("POST", "/form", sent, headers, encode_chunked=chunked)
            response, content = connection.answer()
            assert (response.status, json.loads(content)) == (200, fields), (kind, chunked)
    assert "Traceback" not in daemon.log


def test_a_django_application_is_served(serve, parser):
    pytest.importorskip("django")
    daemon = serve("-w", "2", "--http", parser, app="support.apps.django_app:app")
    status, _, body = ask(daemon, "GET", "/?a=1")
    assert (status, json.loads(body)) == (200, {"method": "GET", "query": {"a": "1"}, "remote": "127.0.0.1"})
    assert ask(daemon, "GET", "/async")[2] == b"async"
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    assert json.loads(ask(daemon, "POST", "/form", "name=pen&price=2", **form)[2]) == {"name": "pen", "price": "2"}
    assert ask(daemon, "GET", "/stream")[2] == NUMBERS
    assert b"import django" in ask(daemon, "GET", "/file")[2]
    assert ask(daemon, "GET", "/broken")[0] == 500
    assert daemon.stop() == 0
