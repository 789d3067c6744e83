"""From Python: keywords become settings or a command line, and mistakes one clear error."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import procmgr
from procmgr import Config, embed
from procmgr.cli.options import parse
from procmgr.errors import UsageError


async def app(scope, receive, send):
    pass


def test_importing_procmgr_loads_nothing_more():
    loaded = "import sys, procmgr; print([name for name in sys.modules if name.startswith(('procmgr.', 'asyncio'))])"
    result = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout == "[]\n"


ROOT = Path(procmgr.__file__).parents[1]


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    assert {"run", "Config", "Server", "__version__"} <= set(dir(procmgr))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = procmgr.nonsense


def test_uvicorns_keyword_names_are_settings():
    settings = Config(
        app,
        host="::1",
        port=8123,
        timeout_keep_alive=7,
        timeout_graceful_shutdown=9,
        limit_max_requests=100,
        limit_max_requests_jitter=10,
        limit_concurrency=20,
        headers=[("X-A", "1")],
        server_header=False,
        lifespan="off",
        http="h11",
        log_level=None,
        workers=1,
    ).settings
    assert [str(address) for address in settings.bind.addresses] == ["[::1]:8123"]
    assert settings.http.keep_alive == 7
    assert settings.http.limit_concurrency == 20
    assert settings.http.headers == (("X-A", "1"),)
    assert not settings.http.server_header
    assert settings.http.http == "h11"
    assert settings.pool.graceful_timeout == 9
    assert (settings.pool.max_requests, settings.pool.max_requests_jitter) == (100, 10)
    assert settings.app.lifespan == "off"


def test_what_uvicorn_calls_absent_by_default_may_be_passed_as_such():
    Config(
        app,
        reload=False,
        reload_delay=0.25,
        ssl_keyfile=None,
        ssl_context_factory=None,
        ws="none",
        proxy_headers=False,
        uds=None,
        fd=None,
    )


def test_none_is_never_for_pings_and_means_nothing_elsewhere():
    settings = Config(app, ws_ping_interval=None, ws_ping_timeout=None, ws_max_size=None).settings.websocket
    assert (settings.ws_ping_interval, settings.ws_ping_timeout, settings.ws_max_size) == (0, 0, 16_777_216)


def test_words_of_uvicorns_mean_what_is_the_same_here():
    settings = Config(app, ws="websockets-sansio", app_dir="").settings
    assert (settings.websocket.ws, settings.app.app_dir) == ("websockets", "")


@pytest.mark.parametrize(
    ("keywords", "error", "said"),
    [
        ({"prot": 80}, TypeError, "unexpected keyword argument 'prot'; did you mean port?"),
        ({"port": "many"}, UsageError, "port='many'"),
        ({"port": 70000}, UsageError, "port=70000"),
        ({"http2": True}, UsageError, "http2 is not available"),
        ({"reload": True}, UsageError, "reload is for the daemon"),
        ({"reload_dirs": ["src"]}, UsageError, "reload_dirs is for the daemon"),
        ({"on_ready": "ops:ready"}, UsageError, "on_ready is for the daemon"),
        ({"workers": 2}, UsageError, "workers is for the daemon"),
        ({"user": "nobody"}, UsageError, "user is for the daemon"),
        ({"env_file": Path(".env")}, UsageError, "env_file is for the daemon"),
        ({"uds": "/a", "port": 1}, UsageError, "exclude each other"),
        ({"log_level": "loud"}, UsageError, "log_level='loud'"),
    ],
)
def test_a_mistake_is_refused_in_one_line(keywords, error, said):
    with pytest.raises(error) as caught:
        Config(app, **keywords)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("level", ["WARNING", "warning", logging.WARNING])
def test_a_log_level_may_be_a_name_or_a_number(level):
    assert Config(app, log_level=level).settings.logs.log_level == "warning"


def test_the_callers_logging_is_left_alone_unless_asked():
    before = describe_logging()
    Config(app)
    assert describe_logging() == before
    Config(app, log_config={"version": 1, "loggers": {"procmgr.error": {"level": "CRITICAL"}}})
    assert logging.getLogger("procmgr.error").level == logging.CRITICAL


@pytest.fixture(autouse=True)
def _logging_put_back():
    loggers = [logging.getLogger(name) for name in ("procmgr", "procmgr.error", "procmgr.access")]
    before = [(logger.level, list(logger.handlers), logger.propagate, logger.disabled) for logger in loggers]
    yield
    for logger, (level, handlers, propagate, disabled) in zip(loggers, before, strict=True):
        logger.level, logger.handlers, logger.propagate, logger.disabled = level, handlers, propagate, disabled


def describe_logging():
    loggers = [logging.getLogger(name) for name in (None, "procmgr", "procmgr.error", "procmgr.access")]
    return [(logger.level, tuple(logger.handlers), logger.propagate) for logger in loggers]


def test_an_object_with_workers_or_reload_is_refused_with_uvicorns_status(caplog):
    for keywords in ({"workers": 2}, {"reload": True}):
        with pytest.raises(SystemExit) as caught:
            procmgr.run(app, **keywords)
        assert caught.value.code == 3
    assert "import string" in caplog.text


@pytest.fixture
def command(monkeypatch):
    """Return a function that calls `run` and returns the daemon's command line instead of running it."""
    seen = []

    def supervise(command, environ):
        seen.append(command)
        paths = [item.partition("=")[2] for item in command if item.startswith("--log-config=")]
        seen.extend(json.loads(Path(path).read_text()) for path in paths)
        return 0

    monkeypatch.setattr(embed, "supervise", supervise)

    def run(target, **keywords):
        seen.clear()
        assert procmgr.run(target, **keywords) == 0
        return seen

    return run


def test_a_string_is_run_by_the_daemon_with_the_same_settings(command):
    (line,) = command(
        "main:api",
        host="::1",
        port=8123,
        workers=4,
        access_log=False,
        factory=True,
        timeout_keep_alive=7.5,
        headers=[("X-A", "1: 2"), ("X-B", "=")],
        fd=[3, 4],
        umask="022",
        env={"TZ": "UTC"},
        log_level="WARNING",
    )
    assert line[:3] == [sys.executable, "-m", "procmgr"]
    assert dict(parse(line[3:]).values) == {
        "app": "main:api",
        "host": "::1",
        "port": "8123",
        "workers": "4",
        "access_log": False,
        "factory": True,
        "keep_alive": "7.5",
        "headers": ("X-A: 1: 2", "X-B: ="),
        "fd": ("3", "4"),
        "umask": "022",
        "env": ("TZ=UTC",),
        "log_level": "warning",
    }


def test_a_logging_dict_reaches_the_daemon_as_a_file_that_does_not_stay(command):
    line, config = command("main:api", log_config={"version": 1})
    assert config == {"version": 1}
    (path,) = [item.partition("=")[2] for item in line if item.startswith("--log-config=")]
    assert not Path(path).exists()


def test_reload_is_handed_to_the_daemon(command):
    (line,) = command("main:api", reload=True, reload_dirs=["src", "lib"], reload_includes="*.html")
    assert line[3:-1] == ["--reload", "--reload-dir=src", "--reload-dir=lib", "--reload-include=*.html"]


@pytest.mark.parametrize(
    ("target", "keywords", "said"),
    [
        ("main", {}, "app='main'"),
        ("main:app", {"log_config": {"x": object()}}, "log_config cannot be handed to the daemon"),
        ("main:app", {"http2": True}, "http2 is not available"),
        ("main:app", {"ssl_context_factory": lambda *_: None}, "the daemon imports it"),
    ],
)
def test_what_cannot_be_given_to_the_daemon_is_refused_before_it_starts(command, target, keywords, said):
    with pytest.raises(UsageError, match=said):
        command(target, **keywords)


def test_run_called_by_an_application_being_imported_in_a_worker_is_refused(monkeypatch):
    monkeypatch.setitem(os.environ, "PROCMGR_WORKER_ID", "1")
    monkeypatch.setitem(sys.modules, "procmgr.worker.boot", sys)
    with pytest.raises(UsageError, match="__main__"):
        procmgr.run("main:app")
