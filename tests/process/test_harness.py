"""The harness itself: a load that cannot see a failure would prove nothing."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from threading import Thread

import pytest
from support.load import Load


def serve_badly(listener, answer):
    """Answer each request on each connection with what `answer(number of the request, its head)` returns."""
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        Thread(target=_converse, args=(sock, answer), daemon=True).start()


def _converse(sock, answer):
    with closing(sock), sock.makefile("rb") as stream:
        number = 0
        while head := stream.readline():
            length = 0
            while (line := stream.readline()).strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            number += 1
            content = answer(number, head, stream.read(length))
            if content is None:
                return
            sock.sendall(content)
            if b"Connection: close" in content:
                return


def good(number, head, body):
    body = body or json.dumps({"pid": 1}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def announces_its_close(number, head, body):
    return (
        good(number, head, body).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        if number == 3
        else good(number, head, body)
    )


def cuts(number, head, body):
    return None if number == 3 else good(number, head, body)


def loses_a_byte(number, head, body):
    return good(number, head, body[:-1]) if body else good(number, head, body)


def answers_500(number, head, body):
    return good(number, head, body).replace(b"200 OK", b"500 No") if number == 3 else good(number, head, body)


@pytest.fixture
def listener():
    sock = socket.create_server(("127.0.0.1", 0))
    yield sock
    sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def run_load(listener, answer):
    thread = Thread(target=serve_badly, args=(listener, answer), daemon=True)
    thread.start()
    with Load(listener.getsockname()[1], keep_alive=3, fresh=2) as load:
        load.wait_answers(30)
    return load.result.failures


@pytest.mark.parametrize("answer", [good, announces_its_close])
def test_an_honest_server_fails_nobody(listener, answer):
    assert run_load(listener, answer) == []


@pytest.mark.parametrize("answer", [cuts, loses_a_byte, answers_500])
def test_every_way_to_fail_a_request_is_seen(listener, answer):
    assert run_load(listener, answer)
