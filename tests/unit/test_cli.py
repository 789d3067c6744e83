"""The console command: help, errors in one line, what is printed, what is handed to the arbiter."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procmgr import __version__, arbiter
from procmgr.cli.main import main, working_directory
from procmgr.cli.options import Action, help_text, parse
from procmgr.cli.render import configuration
from procmgr.config import sources
from procmgr.config.reference import spellings
from procmgr.config.resolve import Invocation, flat, resolve
from procmgr.config.settings import TABLE
from procmgr.errors import AppNotFoundError, BindError, ConfigError, UsageError

ENTRIES = pytest.mark.parametrize("entry", TABLE.values(), ids=lambda entry: entry.name)


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("PROCMGR_", "UVICORN_")) or name in ("PORT", "WEB_CONCURRENCY"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sources.find.__kwdefaults__, "system", tmp_path / "etc.toml")


@pytest.fixture
def root(monkeypatch):
    """A stand-in for the composition root, which keeps what it was called with and answers as it is told."""
    stub = types.ModuleType("procmgr.arbiter.main")
    stub.calls, stub.answer = [], 0

    def called(name):
        def call(invocation, resolved):
            stub.calls.append((name, invocation, resolved))
            if isinstance(stub.answer, BaseException):
                raise stub.answer
            return stub.answer

        return call

    stub.main, stub.check = called("main"), called("check")
    monkeypatch.setitem(sys.modules, "procmgr.arbiter.main", stub)
    monkeypatch.setattr(arbiter, "main", stub, raising=False)
    return stub


# --- help -------------------------------------------------------------------------------------------------------


@ENTRIES
def test_help_has_every_option_under_every_name_with_its_default(entry):
    text = " ".join(help_text().split())
    for name in spellings(entry):
        assert f" {name}" in text
    if spellings(entry):
        about = f"{entry.setting.help} "
        start = text.index(about)
        assert f"[default: {entry.default}" in text[start : start + len(about) + 200]


def test_help_fits_into_80_columns():
    assert max(map(len, help_text().splitlines())) <= 80


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_goes_to_standard_output_and_is_no_error(flag, capsysbinary):
    assert main([flag]) == 0
    out, err = capsysbinary.readouterr()
    assert out.decode() == f"{help_text()}\n"
    assert err == b""


def test_version(capsysbinary):
    assert main(["--version"]) == 0
    assert capsysbinary.readouterr().out.decode() == f"procmgr {__version__}\n"


def test_help_and_version_answer_whatever_else_is_asked():
    assert parse(["main:app", "--check-config", "--help"]).action is Action.HELP
    assert parse(["--print-config", "--version"]).action is Action.VERSION


# --- parsing ----------------------------------------------------------------------------------------------------


def test_only_what_was_typed_is_given():
    assert parse([]).values == {}
    assert parse(["main:app", "-w", "3", "--no-access-log", "-b", ":1", "-b", ":2", "-c", "x.toml"]) == parse(
        ["-b:1", "--bind=:2", "main:app", "--config=x.toml", "-w3", "--no-access-log"]
    )
    parsed = parse(["main:app", "-b", ":1", "-b", ":2", "--no-access-log"])
    assert parsed.values == {"app": "main:app", "bind": (":1", ":2"), "access_log": False}
    assert (parsed.action, parsed.config) == (Action.SERVE, None)


def test_the_last_of_a_repeated_single_option_holds():
    assert parse(["-w", "2", "--workers", "3"]).values == {"workers": "3"}
    assert parse(["--timeout-worker-healthcheck", "2", "-t", "3"]).values == {"timeout": "3"}


MISTAKES = [
    ([], 2, "no application given; expected procmgr [OPTIONS] MODULE:ATTR, as in: procmgr main:app"),
    (["--wrokers", "3"], 2, "no such option: --wrokers; did you mean --workers?"),
    (["--zzz"], 2, "no such option: --zzz; see procmgr --help"),
    (["-w"], 2, "option '-w' requires an argument; see procmgr --help"),
    (["a:b", "c:d"], 2, "got unexpected extra argument (c:d); see procmgr --help"),
    (["--factory=yes", "a:b"], 2, "option '--factory' does not take a value; see procmgr --help"),
    (
        ["--check-config", "--print-config"],
        2,
        "--check-config, --print-config and --print-unit exclude each other; expected only one of them",
    ),
    (["--http2", "a:b"], 2, "--http2 is not available in this version"),
    (
        ["-k", "uvicorn_worker.UvicornWorker", "a:b"],
        2,
        "-k is not an option of procmgr: it has one kind of worker; leave it out, and say --interface wsgi for WSGI",
    ),
    (
        ["--worker-connections=4", "a:b"],
        2,
        "--worker-connections is not an option of procmgr: use --limit-connections",
    ),
    (
        ["--logger-class", "x", "a:b"],
        2,
        "--logger-class is not an option of procmgr: configure logging with --log-config",
    ),
    (
        ["-D", "a:b"],
        2,
        "-D is not an option of procmgr: it stays in the foreground; let systemd or a container run it",
    ),
    (
        ["-c", "gunicorn.conf.py", "a:b"],
        2,
        "--config: gunicorn.conf.py is Python; expected a TOML file, as --from-gunicorn makes of gunicorn's",
    ),
    (
        ["-w", "-1", "a:b"],
        2,
        "workers: '-1' from --workers: expected a whole number from 1 to 500, or 'auto'",
    ),
    (
        ["--loop", "iocp", "a:b"],
        2,
        "loop: 'iocp' from --loop: that is for Windows, procmgr runs on Linux; expected auto, asyncio or uvloop",
    ),
    (
        ["main"],
        2,
        (
            "app: 'main' from the command line: the attribute is missing; expected a module and an attribute, as in "
            "main:app"
        ),
    ),
]


@pytest.mark.parametrize(
    ("arguments", "code", "line"), MISTAKES, ids=[" ".join(each[0]) or "nothing" for each in MISTAKES]
)
def test_a_mistake_is_one_line_on_standard_error_and_an_exit_code(arguments, code, line, capsys, root):
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"procmgr: error: {line}\n")
    assert root.calls == []


def test_a_mistake_in_the_environment_or_a_file_exits_with_78(monkeypatch, capsys, tmp_path, root):
    monkeypatch.setenv("PROCMGR_WORKERS", "many")
    assert main(["a:b"]) == 78
    assert capsys.readouterr().err.startswith("procmgr: error: workers: 'many' from PROCMGR_WORKERS: expected")
    monkeypatch.delenv("PROCMGR_WORKERS")
    (tmp_path / "procmgr.toml").write_text("workers = [")
    assert main(["a:b"]) == 78
    assert capsys.readouterr().err.startswith("procmgr: error: procmgr.toml:1: ")


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "\x1b[31mred", "\udcff"])
def test_no_argument_breaks_the_one_line(text, capsys, root):
    assert main([text]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.isascii()
    assert "\x1b" not in err


# --- handing over -----------------------------------------------------------------------------------------------


def test_the_arbiter_gets_the_invocation_and_its_answer_is_the_exit_code(root, monkeypatch, tmp_path):
    monkeypatch.setenv("PROCMGR_BACKLOG", "77")
    monkeypatch.setenv("PWD", str(tmp_path))
    root.answer = 3
    assert main(["-w", "2", "main:app"]) == 3
    ((name, invocation, resolved),) = root.calls
    assert name == "main"
    assert invocation.values == {"app": "main:app", "workers": "2"}
    assert invocation.environ["PROCMGR_BACKLOG"] == "77"
    assert (invocation.cwd, invocation.config) == (tmp_path, None)
    assert (resolved.settings.pool.workers, resolved.settings.bind.backlog) == (2, 77)


def test_check_config_asks_for_a_check_and_nothing_else(root):
    root.answer = 4
    assert main(["--check-config", "main:app"]) == 4
    assert [name for name, *_ in root.calls] == ["check"]


def test_a_refusal_of_the_arbiter_is_one_line_and_its_exit_code(root, capsys):
    root.answer = BindError("127.0.0.1:8000 is in use")
    assert main(["main:app"]) == 71
    assert capsys.readouterr().err == "procmgr: error: 127.0.0.1:8000 is in use\n"


def test_an_applications_traceback_comes_before_the_line(root, capsys):
    root.answer = AppNotFoundError("no module named 'x'", "Traceback ...\n  File\n")
    assert main(["main:app"]) == 4
    assert capsys.readouterr().err == "Traceback ...\n  File\nprocmgr: error: no module named 'x'\n"


def test_a_bug_is_not_dressed_up_as_a_refusal(root):
    root.answer = RuntimeError("bug")
    with pytest.raises(RuntimeError):
        main(["main:app"])


# --- print-config -----------------------------------------------------------------------------------------------


def test_print_config_shows_each_value_with_its_origin(capsysbinary, monkeypatch, tmp_path, root):
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    (tmp_path / "procmgr.toml").write_text("keep-alive = 9")
    assert main(["main:app", "--print-config", "-e", "A=b", "--max-requests=0"]) == 0
    lines = capsysbinary.readouterr().out.decode().splitlines()
    assert 'app = "main:app"  # the command line' in lines
    assert 'env = ["A=b"]  # --env' in lines
    assert "workers = 3  # WEB_CONCURRENCY" in lines
    assert "keep_alive = 9  # procmgr.toml" in lines
    assert "max_requests = 0  # --max-requests" in lines
    assert "backlog = 2048  # default" in lines
    assert "#uds =  # not given" in lines
    assert "# Sockets: 127.0.0.1:8000" in lines
    assert root.calls == []


NEEDING_OTHERS = [
    *("app", "bind", "uds", "host", "port", "app_dir", "env_file", "log_config", "chdir", "workers", "reload_dirs"),
    *("ssl_certfile", "ssl_keyfile", "ssl_ca_certs", "ssl_cert_reqs"),
    "preload_immortal",
    *("admin_bind", "agent_bind"),  # one example for both, and only one of them can have it
]
GIVEN = st.fixed_dictionaries(
    {"app": st.just("main:app")},
    optional={"workers": st.just("4")}
    | {
        entry.name: st.just((entry.setting.kind.example,) if entry.setting.kind.item else entry.setting.kind.example)
        for entry in TABLE.values()
        if entry.name not in NEEDING_OTHERS
    },
)


@settings(max_examples=50)
@given(given=GIVEN, address=st.sampled_from([{}, {"bind": (":80", "unix:/a b")}, {"uds": "/x"}, {"host": "::1"}]))
def test_what_print_config_prints_is_a_configuration_file_that_means_the_same(tmp_path_factory, given, address):
    cwd = tmp_path_factory.getbasetemp()
    first = resolve(Invocation(values={**given, **address}, config=None, environ={}, cwd=cwd))
    file = cwd / "printed.toml"
    file.write_text(configuration(first))
    again = resolve(Invocation(values={}, config=file, environ={}, cwd=cwd))
    assert flat(again.settings) == flat(first.settings)


# --- the process ------------------------------------------------------------------------------------------------


def test_the_working_directory_is_the_one_the_user_named(monkeypatch, tmp_path):
    """A deploy switches a symlink; the kernel's name for the directory would stay at the old release."""
    (tmp_path / "v1").mkdir()
    (tmp_path / "current").symlink_to("v1")
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("PWD", str(tmp_path / "current"))
    assert working_directory() == tmp_path / "current"
    monkeypatch.setenv("PWD", "/")
    assert working_directory() == tmp_path / "v1"
    monkeypatch.setenv("PWD", ".")
    assert working_directory() == tmp_path / "v1"


def test_a_working_directory_that_is_gone_is_said(monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.delenv("PWD", raising=False)
    with pytest.raises(ConfigError, match="No such file or directory"):
        working_directory()
    os.chdir(tmp_path)  # pytest's own undo needs a directory to come from


def run(code, **more):
    root = Path(__file__).parents[2]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root)}
    command = [sys.executable, *code]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=30, **more)


def test_what_only_prints_or_refuses_loads_no_server():
    heavy = "asyncio uvloop httptools h11 websockets procmgr.arbiter.main procmgr.worker.server"
    code = f"""
import sys
from procmgr.cli.main import main
main(["--help"]), main(["--wrokers"]), main(["a:b", "--print-config"])
loaded = set({heavy.split()}) & set(sys.modules)
sys.exit(f"loaded: {{loaded}}" if loaded else 0)
"""
    done = run(["-c", code])
    assert done.returncode == 0, done.stderr


def test_python_m_procmgr_is_the_same_command():
    done = run(["-m", "procmgr", "--wrokers"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "procmgr: error: no such option: --wrokers; did you mean --workers?\n"


def test_a_reader_that_has_seen_enough_is_no_error():
    """As in `procmgr --help | head -1`."""
    read, write = os.pipe()
    os.close(read)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "procmgr", "--help"],
        env={"PYTHONPATH": str(root)},
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
        timeout=30,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_output_that_cannot_be_written_is_one_line_and_an_error():
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "procmgr", "--help"],
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=30,
        )
    assert done.returncode == 1
    assert done.stderr == b"procmgr: error: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--help"], 0), (["--wrokers"], 2), (["--check-config", "json:loads"], 0), (["--check-config", "json:lads"], 4)],
)
def test_closed_standard_streams_change_no_exit_code(arguments, status):
    """A daemon may be started with none of them; sys.stdout and sys.stderr are None then."""
    command = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "procmgr", *arguments]
    done = subprocess.run(command, env={"PYTHONPATH": str(Path(__file__).parents[2])}, check=False, timeout=30)
    assert done.returncode == status


def test_a_check_tells_what_a_start_would_tell():
    """A variable with a slip in its name, say, which is nowhere else to be seen before it is served with."""
    done = subprocess.run(
        [sys.executable, "-m", "procmgr", "--check-config", "json:loads"],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PROCMGR_WORKRS": "2"},
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0
    assert done.stderr.startswith(b"procmgr: note: ")
    assert b"PROCMGR_WORKRS" in done.stderr


def test_a_check_refuses_a_log_configuration_that_a_start_would_refuse(tmp_path):
    (tmp_path / "log.json").write_text('{"version": 2}')
    done = subprocess.run(
        [sys.executable, "-m", "procmgr", "--check-config", "--log-config", str(tmp_path / "log.json"), "json:loads"],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (78, b"")
    assert done.stderr.endswith(b"log.json: Unsupported version: 2\n")


def test_usage_errors_are_refusals():
    with pytest.raises(UsageError):
        parse(["--zzz"])
