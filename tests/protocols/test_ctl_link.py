"""procmgrctl's end of the connection, against a daemon that the test plays."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from threading import Thread

import pytest

from procmgr.cli import ctl, link
from procmgr.cli.link import Link, converse, running
from procmgr.errors import UnavailableError


class Daemon:
    """Accepts connections and answers the requests on each by the lines that the test wrote; then closes it."""

    def __init__(self, path, *connections) -> None:
        self.path = path
        self.asked = []
        self._connections = connections
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for lines in self._connections:
            sock, _ = self._listener.accept()
            with sock, sock.makefile("rb") as file:
                self.asked.append(json.loads(file.readline()))
                for line in lines:
                    data = line if isinstance(line, bytes) else json.dumps({"v": 1, **line}).encode() + b"\n"
                    with suppress(BrokenPipeError):
                        sock.sendall(data)

    def close(self) -> None:
        self._thread.join(5)
        self._listener.close()


@pytest.fixture
def daemon(tmp_path):
    started = []

    def start(*connections):
        started.append(Daemon(tmp_path / "control.sock", *connections))
        return started[-1]

    yield start
    for each in started:
        each.close()


END = {"event": "end", "exit": 0, "text": "done"}
ACCEPTED = {"event": "accepted", "operation": "reload:7"}


def test_the_events_of_a_request_are_yielded_to_the_last(daemon):
    played = daemon([ACCEPTED, {"event": "step", "text": "one"}, END, {"event": "never"}])
    events = list(converse(played.path, "reload", {"wait": True}))
    assert [event["event"] for event in events] == ["accepted", "step", "end"]
    assert played.asked == [{"v": 1, "op": "reload", "wait": True}]


def test_after_a_re_exec_the_same_operation_is_followed_on_a_new_connection(daemon):
    played = daemon([ACCEPTED, {"event": "exec"}], [{"event": "step", "text": "on"}, END])
    events = list(converse(played.path, "reload", {}))
    assert [event["event"] for event in events] == ["accepted", "exec", "step", "end"]
    assert played.asked[1] == {"v": 1, "op": "follow", "operation": "reload:7"}


def test_a_daemon_that_is_away_for_a_while_after_a_re_exec_is_waited_for(daemon, monkeypatch):
    played = daemon([ACCEPTED, {"event": "exec"}])
    tries = []

    def pause(*_args):
        tries.append(1)
        if len(tries) == 3:
            daemon([END])

    monkeypatch.setattr(link.select, "select", pause)
    events = []
    for event in converse(played.path, "reload", {}):
        events.append(event["event"])
        if event["event"] == "exec":
            played.close()
            played.path.unlink()
    assert events == ["accepted", "exec", "end"]
    assert len(tries) == 3


def test_a_connection_that_ends_without_a_last_event_is_no_success(daemon):
    played = daemon([ACCEPTED])
    with pytest.raises(UnavailableError, match="closed the connection"):
        list(converse(played.path, "reload", {}))


@pytest.mark.parametrize("line", [b"garbage\n", b'{"v":2,"event":"end","exit":0}\n', b"[]\n"])
def test_what_is_not_the_protocol_is_no_success(daemon, line):
    played = daemon([line])
    with pytest.raises(UnavailableError):
        list(converse(played.path, "status", {}))


def test_a_daemon_that_does_not_answer_is_waited_for_within_bounds(tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        asking = Link(path, patience=0.05)
        with pytest.raises(UnavailableError, match="no answer within"):
            list(asking.ask("status", {}))
        asking.close()


def test_what_answers_is_an_instance_and_what_does_not_is_none(daemon, tmp_path):
    played = daemon([{**END, "name": "shop", "pid": 7, "version": "1.0"}])
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    found, forbidden = running([tmp_path / "dead.sock", played.path, tmp_path / "none.sock"])
    assert [(each.name, each.pid, each.path) for each in found] == [("shop", 7, played.path)]
    assert forbidden == []


def test_a_failure_shows_the_applications_words_and_exits_as_the_daemon_says(daemon, capsys):
    failed = {"event": "end", "exit": 3, "text": "it was rolled back", "detail": "Traceback\n  boom\n"}
    played = daemon([ACCEPTED, failed])
    assert ctl.main(["-s", str(played.path), "reload"]) == 3
    out, err = capsys.readouterr()
    assert (out, err) == ("", "Traceback\n  boom\nprocmgrctl: error: it was rolled back\n")


def test_as_json_a_failure_is_its_last_event_and_nothing_else_is_printed(daemon, capsys):
    played = daemon([{"event": "end", "exit": 78, "text": "no"}])
    assert ctl.main(["-s", str(played.path), "reload", "--json"]) == 78
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"event": "end", "exit": 78, "text": "no"}, "")


@pytest.mark.parametrize(
    ("args", "request_"),
    [
        (["reload"], {"op": "reload", "wait": True}),
        (["reload", "--no-wait"], {"op": "reload", "wait": False}),
        (["scale", "+3"], {"op": "scale", "by": 3}),
        (["scale", "-2"], {"op": "scale", "by": -2}),
        (["scale", "4"], {"op": "scale", "to": 4}),
        (["restart", "3"], {"op": "restart", "slot": 3}),
        (["stop", "--quick"], {"op": "stop", "quick": True}),
        (["stacks"], {"op": "stacks"}),
        (["stacks", "2"], {"op": "stacks", "slot": 2}),
        (["reopen-logs"], {"op": "reopen-logs"}),
        (["version"], {"op": "version"}),
    ],
)
def test_each_command_is_one_request(daemon, args, request_, capsys):
    played = daemon([END])
    assert ctl.main(["-s", str(played.path), *args]) == 0
    assert played.asked == [{"v": 1, **request_}]
    assert capsys.readouterr().out == "done\n"
