"""The examples of etc/ that are for nobody in particular, with the real daemon on them."""

from __future__ import annotations

import shutil
import signal

import pytest
from support.daemon import ROOT


@pytest.fixture
def demo(serve, tmp_path):
    """A daemon on a copy of the demo."""
    shutil.copy(ROOT / "etc/demo/app.py", tmp_path / "demo_app.py")
    return serve("-w", "2", "--app-dir", str(tmp_path), "--lifespan", "on", app="demo_app:app")


def page(daemon, path="/", **headers):
    connection = daemon.connect()
    connection.request("GET", path, headers=headers)
    response, body = connection.answer()
    connection.close()
    return response.status, body.decode()


def test_the_demo_shows_who_answered_to_terminals_and_browsers(demo):
    status, line = page(demo)
    assert status == 200
    assert line.startswith("Hello from procmgr: slot ")
    status, html = page(demo, Accept="text/html")
    assert f"<dt>arbiter pid</dt><dd>{demo.pid}</dd>" in html
    assert page(demo, "/arbiter") == (200, f"{demo.pid}\n")
    assert page(demo, "/nowhere")[0] == 404


def test_the_demo_says_a_changed_greeting_after_a_hup_and_its_stream_goes_on(demo, tmp_path):
    connection = demo.connect()
    connection.request("GET", "/stream")
    response = connection.getresponse()
    assert response.readline().startswith(b" 1 of 10 s, slot ")
    file = tmp_path / "demo_app.py"
    file.write_text(file.read_text().replace('"Hello from procmgr"', '"Bonjour"'))
    demo.reload()
    assert page(demo)[1].startswith("Bonjour: slot ")
    assert response.readline().startswith(b" 2 of 10 s, slot ")
    connection.close()


def test_the_example_configuration_is_one_to_start_with_and_to_reload(serve):
    daemon = serve("-c", str(ROOT / "etc/procmgr.toml"))
    daemon.reload()
    assert daemon.get()["pid"]
    daemon.signal(signal.SIGTERM)
    assert daemon.join() == 0
