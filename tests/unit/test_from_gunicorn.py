"""--from-gunicorn: every setting becomes a line that procmgr takes, or a remark; the file is held in check."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from procmgr.cli import from_gunicorn
from procmgr.cli.from_gunicorn import execute, read
from procmgr.cli.options import parse
from procmgr.config import sources
from procmgr.config.from_gunicorn import translate
from procmgr.config.peers.gunicorn import HOOKS, SETTINGS
from procmgr.config.resolve import Invocation, resolve
from procmgr.config.sources import File
from procmgr.errors import ConfigError, ExitCode, TooSlowError, UsageError

LIMIT = 20
EVERYTHING = """
import ssl
wsgi_app = "main:app"
bind = ["127.0.0.1:8001", "unix:/run/app.sock"]
backlog = 100
workers = 3
worker_class = "asgi"
worker_connections = 500
max_requests = 10
max_requests_jitter = 2
timeout = 20
graceful_timeout = 10
keepalive = 3
limit_request_line = 5000
limit_request_fields = 50
preload_app = True
raw_env = ["A=1", "B=2"]
pidfile = "/run/app.pid"
user = "nobody"
group = 65534
umask = 0o027
forwarded_allow_ips = "10.0.0.0/8,127.0.0.1"
accesslog = "/var/log/access.log"
access_log_format = '%(h)s %(s)s'
errorlog = "/var/log/error.log"
loglevel = "warning"
proc_name = "web"
proxy_protocol = "v2"
cert_reqs = ssl.CERT_NONE
ssl_version = ssl.PROTOCOL_TLS_SERVER
ciphers = "ECDHE+AESGCM"
asgi_loop = "uvloop"
asgi_lifespan = "on"
websocket_max_message_size = 1000
http_parser = "python"
root_path = "/api"
control_socket = "/run/control.sock"
reload = True
reload_extra_files = ["a.html"]
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "gunicorn.conf.py"
        file.write_text(text)
        return file

    return write


@pytest.fixture
def translated(write, tmp_path):
    """Return what is made of a file: the settings in force, and the text."""

    def made(text):
        rendered, _ = read(write(text), tmp_path, limit=LIMIT)
        (tmp_path / "procmgr.toml").write_text(rendered)
        values = {} if "\napp = " in rendered else {"app": "main:app"}
        invocation = Invocation(values=values, config=Path("procmgr.toml"), environ={}, cwd=tmp_path)
        return resolve(invocation).settings, rendered

    return made


# --- translation --------------------------------------------------------------------------------------------------


def test_every_value_that_has_an_equivalent_arrives(translated):
    settings, text = translated(EVERYTHING)
    assert "Without equivalent" not in text
    assert settings.app.app == "main:app"
    assert settings.app.env == (("A", "1"), ("B", "2"))
    assert (settings.app.preload, settings.app.root_path) == (True, "/api")
    assert (settings.app.loop, settings.app.lifespan) == ("uvloop", "on")
    assert settings.bind.bind == ("127.0.0.1:8001", "unix:/run/app.sock")
    assert (settings.bind.backlog, settings.pool.workers, settings.pool.timeout) == (100, 3, 20)
    assert (settings.pool.graceful_timeout, settings.http.keep_alive, settings.http.http) == (10, 3, "h11")
    assert (settings.pool.max_requests, settings.pool.max_requests_jitter) == (10, 2)
    assert (settings.limits.limit_request_line, settings.limits.limit_request_fields) == (5000, 50)
    assert (settings.limits.limit_connections, settings.websocket.ws_max_size) == (500, 1000)
    assert settings.proxy.forwarded_allow_ips == ("10.0.0.0/8", "127.0.0.1")
    assert settings.proxy.proxy_protocol
    assert (settings.logs.access_log_file, settings.logs.log_file) == ("/var/log/access.log", "/var/log/error.log")
    assert (settings.logs.access_log_format, settings.logs.log_level) == ("%(h)s %(s)s", "warning")
    assert (settings.process.name, settings.process.pid, settings.process.control) == (
        *("web", "/run/app.pid", "/run/control.sock"),
    )
    assert (settings.process.user, settings.process.group, settings.process.umask) == ("nobody", "65534", 0o027)
    assert settings.tls.ssl_ciphers == "ECDHE+AESGCM"
    assert settings.development.reload
    assert settings.development.reload_includes == ("a.html",)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in HOOKS])
def test_every_setting_of_gunicorn_becomes_a_line_or_a_remark(name):
    made, without = translate({name: {"object": "Strange"}}, {}), translate({}, {})
    assert (made.lines, made.remarks) != (without.lines, without.remarks)


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_of_gunicorn_is_named_with_what_there_is_instead(name):
    remark = translate({name: {"callable": "f"}}, {}).remarks[name]
    ours = HOOKS[name][0]
    assert remark.startswith(f'{ours} = "module:function"' if ours else "no such hook; ")


WORDS = st.sampled_from(["", "x", "-", "auto", "main:app", "8000", "127.0.0.1", "::", "a\nb", "none", "off", "/x", '"'])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=8),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(WORDS, each, max_size=2),
)


@given(values=st.dictionaries(st.sampled_from([*SETTINGS, "worker", "a b"]), VALUES, max_size=6))
def test_whatever_the_values_the_result_is_a_file_that_the_table_takes(values):
    text = from_gunicorn.render("gunicorn.conf.py", translate(values, dict.fromkeys(values, "f()")))
    sources.file_layer(File(Path("x.toml"), "x.toml", tomli.loads(text.encode("utf-8", "replace").decode())))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ('bind = "127.0.0.1:9000, [::1]"', ("127.0.0.1:9000", "[::1]:8000")),
        ('bind = "localhost"', ("localhost:8000",)),
        ('bind = ":80"', (":80",)),
        ('bind = ("tcp://1.2.3.4:5", "fd://3")', ("1.2.3.4:5", "fd://3")),
        ('bind = "unix:a.sock"\nchdir = "/"', ("unix:/a.sock",)),
    ],
)
def test_addresses_are_completed(translated, theirs, ours):
    assert translated(theirs)[0].bind.bind == ours


@pytest.mark.parametrize(
    ("theirs", "ours", "factory"),
    [
        ("main:app", "main:app", False),
        ("pkg.main", "pkg.main:application", False),
        ("main:create()", "main:create", True),
    ],
)
def test_an_application_may_be_a_module_or_a_call(translated, theirs, ours, factory):
    settings, text = translated(f"wsgi_app = {theirs!r}")
    assert (settings.app.app, settings.app.factory) == (ours, factory)
    assert "wsgi_app" not in text


def test_a_factory_with_arguments_is_not_called_without_them_in_silence(translated):
    assert "without arguments" in translated("wsgi_app = 'main:create(1)'")[1]


def test_relative_paths_count_from_chdir_as_in_gunicorn(translated, tmp_path):
    place = tmp_path / "site"
    place.mkdir()
    settings, _ = translated(f"chdir = {str(place)!r}\npidfile = 'a.pid'\nerrorlog = 'e.log'\naccesslog = '/b.log'")
    assert settings.process.pid == f"{place}/a.pid"
    assert (settings.logs.log_file, settings.logs.access_log_file) == (f"{place}/e.log", "/b.log")


def test_gunicorn_writes_no_access_log_unless_it_is_told_where_to(translated):
    assert not translated("workers = 1")[0].logs.access_log
    settings, _ = translated("accesslog = '-'\nerrorlog = '-'")
    assert settings.logs.access_log
    assert settings.logs.access_log_format == "combined"
    assert settings.logs.log_file is None, "- is standard error there"


def test_a_log_configuration_excludes_files_beside_it(translated, tmp_path):
    (tmp_path / "logging.json").write_text("{}")
    settings, text = translated("logconfig_json = 'logging.json'\nerrorlog = '/e.log'\naccesslog = '/a.log'")
    assert settings.logs.log_config == "logging.json"
    assert "#   errorlog: " in text
    assert "#   accesslog: " in text


def test_defaults_that_were_in_force_can_be_restored(translated):
    text = translated("")[1]
    restored = [line.lstrip("#") for line in text.splitlines() if line.startswith("#keep_alive")]
    assert tomli.loads("\n".join(restored)) == {"keep_alive": 2}
    assert "#keep_alive" not in translated("keepalive = 7")[1]


def test_what_was_computed_stands_beside_the_result(translated):
    text = translated("import multiprocessing\nworkers = multiprocessing.cpu_count() * 2 + 1\ntimeout = 30 \n")[1]
    assert f"workers = {os.cpu_count() * 2 + 1}  # multiprocessing.cpu_count() * 2 + 1\n" in text
    assert "timeout = 30\n" in text


def test_directories_beside_the_working_directory_are_told(translated):
    settings, text = translated("pythonpath = '/srv/lib'")
    assert settings.app.app_dir == "."
    assert "#   pythonpath: '/srv/lib': " in text


def test_names_that_gunicorn_does_not_know_are_told(translated):
    text = translated("import os\nworker = 3\n_private = 1\ncores = 4\ndef helper(): pass\n")[1]
    assert text.endswith("there either:\n#   worker: did you mean workers?\n#   cores\n")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("asgi", ""),
        ("uvicorn.workers.UvicornWorker", ""),
        ("uvicorn_worker.UvicornWorker", ""),
        ("main.MyUvicornWorker", "CONFIG_KWARGS"),
    ],
)
def test_the_kind_of_worker_is_judged(translated, kind, said):
    text = translated(f"worker_class = {kind!r}")[1]
    assert said in text
    assert bool(said) is ("#   worker_class:" in text)


@pytest.mark.parametrize(
    ("text", "threads"),
    [("worker_class = 'sync'", 1), ("worker_class = 'gthread'\nthreads = '4'", 4), ("worker_class = 'gevent'", 10)],
)
def test_workers_for_wsgi_are_its_interface_with_as_many_threads(translated, text, threads):
    settings, text = translated(text)
    assert (settings.app.interface, settings.app.threads) == ("wsgi", threads)
    assert "worker_class:" not in text


def test_the_h11_worker_is_the_parser_and_the_loop(translated):
    settings, _ = translated("worker_class = 'uvicorn_worker.UvicornH11Worker'")
    assert (settings.http.http, settings.app.loop) == ("h11", "asyncio")


def test_a_value_that_is_refused_keeps_its_secret():
    assert "squeamish" not in translate({"raw_env": ["A B=squeamish"]}, {}).remarks["raw_env"]


def test_what_is_missing_here_is_warned_of(write, tmp_path):
    _, told = read(write("certfile = '/nowhere.pem'"), tmp_path, limit=LIMIT)
    assert told[-1].startswith("warning: procmgr would not start with the result here: ssl_certfile")


# --- execution ----------------------------------------------------------------------------------------------------


def test_gunicorn_need_not_be_installed(write):
    found = execute(
        write(
            "import gunicorn, gunicorn.workers.base\nfrom gunicorn import glogging, util\n"
            "gunicorn.SERVER_SOFTWARE = 'x'\nclass Log(glogging.Logger): pass\nlogger_class = Log\n"
        ),
        LIMIT,
    )
    assert found.values["logger_class"] == {"callable": "__config__.Log"}


def test_the_file_finds_its_neighbours_and_its_own_path(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neighbour.py").write_text("number = 3\n")
    found = execute(write("import neighbour\nworkers = neighbour.number\nproc_name = __file__\n"), LIMIT)
    assert found.values == {"workers": 3, "proc_name": str(tmp_path / "gunicorn.conf.py")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workers = 1\nraise ValueError('no\\nway')\n", ":2: ValueError: no"),
        ("workers = nothing\n", ":1: NameError: name 'nothing' is not defined"),
        ("workers = = 3\n", ":1: SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(3)\n", ":2: called sys.exit(3)"),
        ("raise KeyboardInterrupt\n", ":1: KeyboardInterrupt"),
        ("input()\n", ":1: EOFError: EOF when reading a line"),
        ("import os\nos._exit(0)\n", ": it ended the process with status 0 before"),
        ("import os\nos.kill(os.getpid(), 9)\n", ": it was ended by SIGKILL before"),
        ("import nowhere\n", ":1: ModuleNotFoundError: No module named 'nowhere'"),
        ("a = []\na.append(a)\n", "RecursionError"),
    ],
)
def test_a_file_that_fails_is_one_line_with_its_place(write, text, said):
    file = write(text)
    with pytest.raises(ConfigError) as caught:
        execute(file, LIMIT)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{file}:")
    assert caught.value.exit_code == ExitCode.CONFIG


def test_a_file_that_hangs_is_ended_with_what_it_started(write, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    file = write(f"import subprocess\nsubprocess.run(['sh', '-c', 'exec 3>{fifo}; sleep 1000'])\n")
    with pytest.raises(TooSlowError, match="not executed to its end within 2 seconds") as caught:
        execute(file, 2)
    assert caught.value.exit_code == ExitCode.TIMED_OUT
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b"", "whoever held the other end is gone"
    os.close(reader)


def test_a_thread_that_the_file_leaves_holds_nothing_up(write):
    text = "import threading\nthreading.Thread(target=threading.Event().wait).start()\nworkers = 2\n"
    assert execute(write(text), LIMIT).values == {"workers": 2}


def test_there_has_to_be_a_file(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        execute(tmp_path / "none.py", LIMIT)
    with pytest.raises(UsageError, match="no regular file"):
        execute(tmp_path, LIMIT)


# --- the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [["main:app"], ["--workers", "2"], ["-c", "x.toml"], ["--print-config"]])
def test_the_file_is_the_only_argument(more):
    with pytest.raises(UsageError, match="nothing else"):
        parse(["--from-gunicorn", "gunicorn.conf.py", *more])


def test_what_is_piped_is_a_configuration_file_whatever_the_file_prints(write, tmp_path):
    file = write("import os\nprint('chatter')\nos.system('echo more of it')\nworkers = 2\ndaemon = True\n")
    command = [sys.executable, "-m", "procmgr"]
    done = subprocess.run([*command, "--from-gunicorn", file], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert tomli.loads(done.stdout) == {"workers": 2, "access_log": False}
    told = done.stderr.splitlines()
    assert {"chatter", "more of it"} < set(told)
    summary = [line for line in told if line.startswith("procmgr: ")]
    assert summary == [
        "procmgr: gunicorn.conf.py was executed; see the comments in the result about: daemon, worker_class"
    ]
    (tmp_path / "procmgr.toml").write_text(done.stdout)
    printed = [*command, "-c", "procmgr.toml", "--print-config", "main:app"]
    shown = subprocess.run(printed, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "workers = 2  # procmgr.toml" in shown.stdout


def test_the_exit_code_says_what_went_wrong(write):
    done = subprocess.run(
        [sys.executable, "-m", "procmgr", "--from-gunicorn", write("1 / 0\n")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.endswith("gunicorn.conf.py:1: ZeroDivisionError: division by zero\n")
    assert done.stderr.count("\n") == 1
