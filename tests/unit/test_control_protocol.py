"""The control protocol's lines, and where its sockets are looked for."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procmgr import control
from procmgr.control import Request, RequestError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(fields=st.dictionaries(st.text().filter(lambda name: name != "v"), JSON))
def test_a_line_is_ascii_ends_once_and_is_read_back(fields):
    line = control.encode(fields)
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert control.decode(line) == fields


@given(line=st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused_in_one_short_line(line):
    refused = ""
    try:
        control.request(line)
    except RequestError as error:
        refused = str(error)
    assert "\n" not in refused
    assert len(refused) < 500


def test_a_request_is_its_operation_and_the_arguments_beside_it():
    assert control.request(b'{"v":1,"op":"scale","to":3}') == Request("scale", {"to": 3})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "not a JSON object"),
        (b"GET / HTTP/1.1\r", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
        (b"[" * 4000, "not a JSON object"),
        (b'{"op":"status"}', "version None"),
        (b'{"v":2,"op":"status"}', "version 2 .* speaks version 1"),
        (b'{"v":1}', "operation"),
        (b'{"v":1,"op":7}', "operation"),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(line, reason):
    with pytest.raises(RequestError, match=reason):
        control.request(line)


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"RUNTIME_DIRECTORY": "/run/web"}, "/run/web/control.sock"),
        ({"RUNTIME_DIRECTORY": "/run/web:/run/other", "XDG_RUNTIME_DIR": "/run/user/7"}, "/run/web/control.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/procmgr/web.sock"),
        ({"XDG_RUNTIME_DIR": "relative"}, None),
        ({"RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": ""}, None),
        ({}, None),
    ],
)
def test_the_default_is_in_the_first_runtime_directory_else_the_users_else_nowhere(environ, path):
    assert control.default_path(environ, "web") == (None if path is None else Path(path))


def listen(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    return sock


def test_sockets_are_found_in_every_runtime_directory_and_each_once(tmp_path):
    user, run = tmp_path / "user", tmp_path / "run"
    places = [
        user / "procmgr/one.sock",
        run / "user/7/procmgr/two.sock",
        run / "procmgr/control.sock",
        run / "procmgr/site/control.sock",
        run / "procmgr@three/control.sock",
    ]
    socks = [listen(place) for place in (*places, run / "other/control.sock")]
    (run / "procmgr/no.sock").write_text("a file")
    (run / "procmgr/again.sock").symlink_to(places[2])
    found = list(control.candidates({"XDG_RUNTIME_DIR": str(user)}, 7, None, run=run))
    assert sorted(map(str, found)) != []
    assert {path.resolve() for path in found} == set(places)
    assert len(found) == len(places)
    for sock in socks:
        sock.close()


def test_a_name_is_also_looked_for_as_a_directory_of_its_own(tmp_path):
    with listen(tmp_path / "web/control.sock"):
        assert list(control.candidates({}, 7, "web", run=tmp_path)) == [tmp_path / "web/control.sock"]
        assert list(control.candidates({}, 7, "other", run=tmp_path)) == []


def test_what_an_event_holds_survives_as_it_is():
    detail = 'Traceback\n  File "å.py"\x1b[31m\ud800'
    assert json.loads(control.encode({"event": "end", "detail": detail}))["detail"] == detail
