"""Hooks: what is kept of their output, and that whatever they do is contained where they are called."""

from __future__ import annotations

import logging
import signal
import sys
import time

import pytest

from procmgr.arbiter.hooks import Capture
from procmgr.errors import AppError
from procmgr.worker import hooks


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function that writes the module `hook` and returns its directory."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(source):
        (tmp_path / "hook.py").write_text(source)
        return str(tmp_path)

    yield write
    sys.modules.pop("hook", None)


@pytest.fixture
def errors(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("procmgr.error"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_capture_keeps_the_beginning_and_the_end():
    capture = Capture()
    for number in range(20_000):
        capture.feed(b"%d\n" % number)
    text = capture.text()
    assert text.startswith("0\n1\n")
    assert text.endswith("19998\n19999")
    assert "bytes left out" in text
    assert len(text) < 17_000


def test_a_capture_shows_little_output_whole_and_bad_utf_8_somehow():
    capture = Capture()
    capture.feed(b"caf\xe9\n")
    assert capture.text() == "caf\ufffd"


def test_a_hook_gets_a_dict_of_its_own(module):
    where = module("told = []\ndef hook(event):\n    told.append(event)\n")
    event = {"hook": "post_fork"}
    hooks.call("hook:hook", where, event)
    assert sys.modules["hook"].told == [event]
    assert sys.modules["hook"].told[0] is not event


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("hook = 3\n", "hook 'hook:hook' cannot be called: it is of type int"),
        ("async def hook(event): ...\n", "hook 'hook:hook' is a coroutine function"),
        ("hooks = 3\n", "no attribute 'hook' for hook 'hook:hook' in .*; did you mean hooks?"),
        ("import nowhere_at_all\n", "nowhere_at_all"),
    ],
)
def test_what_is_no_hook_is_said_in_one_line(module, source, says):
    with pytest.raises(AppError, match=says):
        hooks.call("hook:hook", module(source), {})


@pytest.mark.parametrize("raised", ["ValueError('broken')", "SystemExit('broken')"])
def test_in_a_worker_a_hook_that_raises_is_logged_with_its_own_traceback(module, errors, raised):
    where = module(f"def hook(event):\n    raise {raised}\n")
    hooks.run_before_loop("post_fork", "hook:hook", where, {})
    assert len(errors()) == 1
    assert errors()[0].startswith("hook post_fork (hook:hook) failed: ")
    assert "broken" in errors()[0]
    assert 'hook.py", line 2, in hook' in errors()[0]
    assert "procmgr/worker" not in errors()[0]


def test_in_a_worker_a_hook_that_hangs_is_cut_short_however_it_resists(module, errors, monkeypatch):
    monkeypatch.setattr(hooks, "SECONDS", 0.05)
    monkeypatch.setattr(hooks, "_AGAIN_SECONDS", 0.05)
    where = module(
        "import time\n"
        "def hook(event):\n"
        "    try:\n"
        "        while True:\n"
        "            try:\n"
        "                time.sleep(60)\n"
        "            except Exception:\n"
        "                pass\n"
        "    finally:\n"
        "        time.sleep(60)\n"
    )
    begun = time.monotonic()
    hooks.run_before_loop("post_fork", "hook:hook", where, {})
    assert time.monotonic() - begun < 60
    assert "took longer than 0.05 s and was cut short" in errors()[0]
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
