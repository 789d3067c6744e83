"""The application is found, adapted and, when it is not there, said to be so in one helpful line."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys

import pytest

from procmgr.config.resolve import build
from procmgr.errors import AppError, AppNotFoundError, ConfigError, ExitCode
from procmgr.worker.app import adapt, load
from procmgr.worker.boot import environment


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return a function that writes a file into a fresh application directory; imports are undone afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write(name: str, text: str = "") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(tmp_path)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


ASGI3 = "async def app(scope, receive, send): pass\n"


def refused(target, app_dir, **options):
    with pytest.raises(AppError) as caught:
        load(target, app_dir=app_dir, **options)
    assert "\n" not in caught.value.summary
    return caught.value


def test_an_attribute_path_is_followed(project):
    where = project("shop.py", f"class box:\n    class inner:\n        {ASGI3}")
    assert load("shop:box.inner.app", app_dir=where).__name__ == "app"


def test_the_application_directory_comes_first_on_the_path(project, tmp_path):
    project("other/shop.py", "async def app(scope, receive, send): 'other'")
    where = project("mine/shop.py", "async def app(scope, receive, send): 'mine'")
    sys.path.insert(0, f"{where}/other")
    assert load("shop:app", app_dir=f"{where}/mine").__doc__ == "mine"
    assert sys.path[0] == f"{where}/mine"


def test_the_directory_is_kept_as_the_shell_spells_it_and_not_resolved(project, tmp_path, monkeypatch):
    """A deploy that switches a symlink must be seen by the next worker."""
    project("release-1/shop.py", ASGI3)
    (tmp_path / "current").symlink_to(tmp_path / "release-1")
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("PWD", str(tmp_path / "current"))
    load("shop:app")
    assert sys.path[0] == str(tmp_path / "current")


@pytest.mark.parametrize("pwd", ["/nonexistent", "relative", "/"])
def test_a_pwd_that_is_not_the_working_directory_is_not_believed(project, tmp_path, monkeypatch, pwd):
    project("shop.py", ASGI3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", pwd)
    load("shop:app")
    assert sys.path[0] == str(tmp_path)


def test_a_missing_module_is_not_found_and_close_names_are_offered(project):
    error = refused("shpo:app", project("shop.py", ASGI3))
    assert isinstance(error, AppNotFoundError)
    assert error.exit_code == ExitCode.APP_NOT_FOUND
    assert error.summary.startswith("no module named 'shpo'")
    assert error.summary.endswith("did you mean shop?")
    assert error.detail == ""


def test_a_missing_submodule_is_said_with_close_names(project):
    project("pkg/__init__.py")
    error = refused("pkg.serverr:app", project("pkg/server.py", ASGI3))
    assert "no module named 'pkg.serverr'" in error.summary
    assert error.summary.endswith("did you mean pkg.server?")


def test_a_module_in_a_subdirectory_suggests_app_dir(project):
    error = refused("shop:app", project("src/shop.py", ASGI3))
    assert error.summary.endswith("did you mean --app-dir src?")


def test_a_missing_attribute_offers_close_and_usual_names(project):
    error = refused("shop:ap", project("shop.py", ASGI3))
    assert isinstance(error, AppNotFoundError)
    assert "no attribute 'ap' for application 'shop:ap'" in error.summary
    assert error.summary.endswith("did you mean app?")


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("shop", "did you mean shop:app?"),
        ("shop.py", "give a module, as in shop:app"),
        ("./src/shop.py:api", "give a module, as in src.shop:api"),
        (":app", "as in main:app"),
        ("", "as in main:app"),
        (".shop:app", "as in main:app"),
    ],
)
def test_a_target_of_the_wrong_form_is_told_the_right_one(project, target, wanted):
    error = refused(target, project("shop.py", ASGI3))
    assert isinstance(error, AppNotFoundError)
    assert wanted in error.summary


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        ("import nosuchthing", AppNotFoundError, "No module named 'nosuchthing'"),
        ("from os import nosuchthing", AppNotFoundError, "cannot import name 'nosuchthing'"),
        ("def app(:", AppNotFoundError, "SyntaxError"),
        ("raise ConnectionError('database is down')", AppError, "ConnectionError: database is down"),
        ("import sys\nsys.exit('no licence')", AppError, "SystemExit: no licence"),
        ("1 / 0", AppError, "ZeroDivisionError"),
    ],
)
def test_what_importing_raises_decides_between_missing_code_and_a_failure(project, code, kind, said):
    error = refused("shop:app", project("shop.py", code))
    assert type(error) is kind
    assert said in error.summary
    assert error.summary.startswith("importing shop failed: ")


def test_the_detail_is_the_traceback_of_the_application_alone(project):
    project("deep.py", "def connect():\n    raise ConnectionError('down')\n")
    where = project("shop.py", "import deep\ntry:\n    1 / 0\nexcept Exception as e:\n    deep.connect()\n")
    detail = refused("shop:app", where).detail
    assert "shop.py" in detail
    assert "deep.py" in detail
    assert "During handling of the above exception" in detail
    assert "importlib" not in detail
    assert "procmgr/" not in detail


def test_a_syntax_error_shows_its_line(project):
    detail = refused("shop:app", project("shop.py", "x = 1\ndef app(:\n")).detail
    assert "line 2" in detail
    assert "def app(:" in detail


def test_ctrl_c_while_importing_is_not_the_applications_fault(project):
    with pytest.raises(KeyboardInterrupt):
        load("shop:app", app_dir=project("shop.py", "raise KeyboardInterrupt"))


FACTORY = "def make():\n    async def app(scope, receive, send): pass\n    return app\n"


def test_a_factory_is_called_when_told_so(project):
    assert load("shop:make", app_dir=project("shop.py", FACTORY), factory=True).__name__ == "app"


def test_a_factory_is_recognised_and_the_flag_suggested(project, caplog):
    with caplog.at_level(logging.WARNING, "procmgr.error"):
        assert load("shop:make", app_dir=project("shop.py", FACTORY)).__name__ == "app"
    assert "--factory" in caplog.text


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def make(): raise ValueError('secret')", "calling the factory shop:make failed: ValueError: secret"),
        ("def make(settings): pass", "TypeError"),
        ("async def make(): pass", "coroutine function"),
        ("make = 3", "it is of type int"),
        ("def make(): return 3", "it is of type int"),
    ],
)
def test_a_factory_that_gives_no_application_is_refused(project, code, said):
    error = refused("shop:make", project("shop.py", code), factory=True)
    assert said in error.summary
    assert type(error) is AppError


def test_what_cannot_be_called_is_no_application(project):
    assert "it is of type dict" in refused("shop:app", project("shop.py", "app = {}")).summary


class Asgi2:
    def __init__(self, scope):
        self.scope = scope

    async def __call__(self, receive, send):
        await send({"type": self.scope["asgi"]["version"]})


class AwaitableAsgi3:
    def __init__(self, scope, receive, send):
        self.send = send

    def __await__(self):
        return self.send({"type": "3.0"}).__await__()


class CallableAsgi3:
    async def __call__(self, scope, receive, send):
        await send({"type": scope["asgi"]["version"]})


async def asgi3(scope, receive, send):
    await send({"type": scope["asgi"]["version"]})


def plain_asgi3(scope, receive, send):
    return asgi3(scope, receive, send)


def asgi2(scope):
    async def instance(receive, send):
        await send({"type": scope["asgi"]["version"]})

    return instance


@pytest.mark.parametrize(
    ("app", "version"),
    [
        (Asgi2, "2.0"),
        (asgi2, "2.0"),
        (AwaitableAsgi3, "3.0"),
        (CallableAsgi3(), "3.0"),
        (asgi3, "3.0"),
        (plain_asgi3, "3.0"),
        (functools.partial(asgi3), "3.0"),
        (CallableAsgi3().__call__, "3.0"),
    ],
)
def test_each_kind_of_application_is_called_by_its_own_interface(app, version):
    assert told_version(app, "auto") == version


def test_an_interface_that_is_named_is_not_guessed():
    def either(*args):
        return asgi3(*args) if len(args) == 3 else asgi2(*args)

    assert told_version(either, "asgi3") == "3.0"
    assert told_version(either, "asgi2") == "2.0"


class Wsgi:
    def __call__(self, environ, start_response):
        return []


@pytest.mark.parametrize("app", [Wsgi(), lambda environ, start_response: []])
def test_what_can_only_be_wsgi_is_refused_with_what_to_say(app):
    with pytest.raises(AppError, match="app looks like a WSGI application; say so with --interface wsgi"):
        adapt(app, name="app")


def told_version(app, interface):
    sent = []

    async def send(message):
        sent.append(message["type"])

    async def run():
        await adapt(app, name="app", interface=interface)({"type": "http", "asgi": {"version": "3.0"}}, None, send)

    asyncio.run(run())
    return sent[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "env_file: cannot read .*site.env: No such file or directory"),
        ("directory", "env_file: cannot read .*site.env: Is a directory"),
        (b"A=\xff\n", "env_file: .*site.env is not UTF-8"),
    ],
)
def test_an_env_file_that_cannot_be_read_is_one_line(tmp_path, content, message):
    path = tmp_path / "site.env"
    if content == "directory":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        environment(build({"app": "a:b", "env_file": str(path)}), {}, tmp_path)
