"""Resolving: which source wins, what each mistake says, what a reload would change."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procmgr.config import sources
from procmgr.config.declare import Applies
from procmgr.config.resolve import Invocation, changes, flat, resolve
from procmgr.config.settings import TABLE, AppSettings, BindSettings, Settings
from procmgr.config.sources import Level, Origin
from procmgr.config.types import Surge
from procmgr.errors import ConfigError, UsageError
from procmgr.process import immortal
from procmgr.sockets import TCP, Inherited, Unix


@pytest.fixture(autouse=True)
def _no_file_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setitem(sources.find.__kwdefaults__, "system", tmp_path / "etc" / "procmgr.toml")


@pytest.fixture
def ask(tmp_path):
    """Resolve a command line, an environment and a ./procmgr.toml; "app" is given unless said otherwise."""

    def ask(values=None, environ=None, file=None, *, config=None, app="main:app"):
        if file is not None:
            (tmp_path / "procmgr.toml").write_text(file)
        line = {**({"app": app} if app else {}), **(values or {})}
        return resolve(Invocation(values=line, config=config, environ=environ or {}, cwd=tmp_path))

    return ask


def test_without_anything_but_an_application_everything_is_default(ask):
    resolved = ask()
    expected = flat(Settings(app=AppSettings(app="main:app"))) | {"name": "main"}
    assert flat(resolved.settings) == expected
    assert {name for name, origin in resolved.origins.items() if origin.level is not Level.DEFAULT} == {"app"}
    assert resolved.config_path is None
    assert resolved.notes == ()


# --- precedence -------------------------------------------------------------------------------------------------

# A value for each level, as that level spells it, and what it means.
NUMBERS = ("workers", "timeout", "graceful_timeout", "keep_alive", "backlog", "max_requests", "max_requests_jitter")


def variable(name, level):
    entry = TABLE[name]
    if level is Level.ENVIRONMENT:
        return entry.variable
    return f"UVICORN_{entry.setting.uvicorn.upper()}" if level is Level.UVICORN else "WEB_CONCURRENCY"


@given(
    asked=st.dictionaries(
        st.sampled_from(NUMBERS),
        st.dictionaries(
            st.sampled_from([level for level in Level if level is not Level.DEFAULT]), st.integers(2, 200), min_size=1
        ),
    )
)
def test_the_nearest_source_wins_and_is_the_origin(tmp_path_factory, asked):
    """Command line over PROCMGR_ over UVICORN_ over WEB_CONCURRENCY over file over default, each setting by itself."""
    cwd = tmp_path_factory.getbasetemp()
    values, environ, keys = {"app": "main:app"}, {}, []
    for name, levels in asked.items():
        for level, number in list(levels.items()):
            match level:
                case Level.COMMAND_LINE:
                    values[name] = str(number)
                case Level.FILE:
                    keys.append(f"{name} = {number}")
                case Level.SHARED if name != "workers":
                    del levels[level]
                case _:
                    environ[variable(name, level)] = str(number)
    file = cwd / "precedence.toml"
    file.write_text("\n".join(keys))
    resolved = resolve(Invocation(values=values, config=file, environ=environ, cwd=cwd))
    got = flat(resolved.settings)
    for name in NUMBERS:
        levels = asked.get(name)
        nearest = min(levels) if levels else Level.DEFAULT
        assert resolved.origins[name].level is nearest
        assert got[name] == (levels[nearest] if levels else TABLE[name].value)


def test_origins_name_flag_variable_and_file(ask):
    resolved = ask(
        {"workers": "2"},
        {"PROCMGR_BACKLOG": "9", "UVICORN_LIMIT_MAX_REQUESTS": "7"},
        "keep_alive = 3",
    )
    assert resolved.origins["app"] == Origin(Level.COMMAND_LINE, "the command line")
    assert resolved.origins["workers"] == Origin(Level.COMMAND_LINE, "--workers")
    assert resolved.origins["backlog"] == Origin(Level.ENVIRONMENT, "PROCMGR_BACKLOG")
    assert resolved.origins["max_requests"] == Origin(Level.UVICORN, "UVICORN_LIMIT_MAX_REQUESTS")
    assert resolved.origins["keep_alive"] == Origin(Level.FILE, "procmgr.toml")
    assert resolved.origins["timeout"] == Origin(Level.DEFAULT, "default")
    assert set(resolved.origins) == set(TABLE)


def test_an_empty_variable_counts_as_unset(ask):
    resolved = ask({}, {"PROCMGR_WORKERS": "", "WEB_CONCURRENCY": "", "PORT": "", "PROCMGR_CONFIG": ""}, "workers = 3")
    assert resolved.settings.pool.workers == 3


def test_a_list_replaces_the_list_of_a_lower_source(ask):
    resolved = ask({"env": ("A=1", "B=2")}, {}, 'env = ["C=3"]')
    assert resolved.settings.app.env == (("A", "1"), ("B", "2"))


def test_python_values_are_taken_as_they_are(ask):
    """`procmgr.Config(port=8001, ...)` gives what uvicorn's keywords take."""
    resolved = ask({"port": 8001, "access_log": False, "headers": [("A", "b")], "timeout": 5})
    assert resolved.settings.bind.addresses == (TCP("127.0.0.1", 8001),)
    assert resolved.settings.logs.access_log is False
    assert resolved.settings.http.headers == (("A", "b"),)


def test_uvicorn_variables_are_mentioned_in_one_note(ask):
    resolved = ask({}, {"UVICORN_HOST": "::1", "UVICORN_TIMEOUT_KEEP_ALIVE": "9"})
    assert resolved.settings.http.keep_alive == 9
    assert resolved.notes == (
        "read UVICORN_HOST, UVICORN_TIMEOUT_KEEP_ALIVE; procmgr's own names are PROCMGR_HOST, PROCMGR_KEEP_ALIVE",
    )


def test_a_misspelt_variable_of_ours_is_noted_with_a_suggestion(ask):
    notes = ask({}, {"PROCMGR_WORKRS": "8"}).notes
    assert notes == ("PROCMGR_WORKRS is not a setting; did you mean PROCMGR_WORKERS?",)


def test_what_workers_inherit_is_no_setting_and_no_news(ask):
    """A procmgr started from inside a worker sees that worker's identity."""
    assert ask({}, {"PROCMGR_SLOT": "0", "PROCMGR_WORKER_ID": "7", "PROCMGR_GENERATION": "1"}).notes == ()


def test_a_uvicorn_variable_that_has_no_counterpart_is_noted(ask):
    notes = ask({}, {"UVICORN_HTTP2": "1"}).notes
    assert notes == ("UVICORN_HTTP2 is not read: it is not available in this version",)


# --- addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "environ", "file", "addresses"),
    [
        ({}, {}, "", [TCP("127.0.0.1", 8000)]),
        ({"host": "0.0.0.0"}, {}, "", [TCP("0.0.0.0", 8000)]),
        ({"host": "::1", "port": "0"}, {}, "", [TCP("::1", 0)]),
        ({"uds": "/tmp/a,b.sock"}, {}, "", [Unix("/tmp/a,b.sock")]),
        ({"fd": ("3", "4")}, {}, "", [Inherited(3), Inherited(4)]),
        ({"fd": ("3",), "port": "80"}, {}, "", [TCP("127.0.0.1", 80), Inherited(3)]),
        ({"fd": ("3",), "uds": "/a"}, {}, "", [Unix("/a"), Inherited(3)]),
        ({"fd": ("3",), "bind": (":80", "fd://3")}, {}, "", [TCP("", 80), Inherited(3)]),
        ({"bind": (":80", ":81", ":80")}, {}, "", [TCP("", 80), TCP("", 81)]),
        ({}, {"PROCMGR_BIND": ":80 [::1]:81"}, "", [TCP("", 80), TCP("::1", 81)]),
        ({}, {}, 'host = "::1"\nport = 81', [TCP("::1", 81)]),
        ({"port": "9"}, {}, 'host = "::1"', [TCP("::1", 9)]),
        ({"port": "9"}, {}, 'bind = ":80"', [TCP("127.0.0.1", 9)]),
        ({"fd": ("3",)}, {}, 'bind = ":80"', [TCP("", 80), Inherited(3)]),
        ({}, {}, "bind = []", [TCP("127.0.0.1", 8000)]),
        ({}, {"PROCMGR_UDS": "/a"}, 'bind = ":80"', [Unix("/a")]),
        ({}, {"PORT": "4000"}, "", [TCP("0.0.0.0", 4000)]),
        ({}, {"PORT": "4000"}, "fd = 3", [Inherited(3)]),
        ({}, {"PORT": "4000"}, 'host = "::1"', [TCP("::1", 8000)]),
        ({"port": "9"}, {"PORT": "4000"}, "", [TCP("127.0.0.1", 9)]),
        ({"bind": (":80",)}, {"PORT": "4000"}, "", [TCP("", 80)]),
        ({}, {"PORT": "4000"}, "bind = []", [TCP("0.0.0.0", 4000)]),
        ({"uds": "/a"}, {"PORT": "not looked at"}, "", [Unix("/a")]),
    ],
)
def test_what_is_bound(ask, values, environ, file, addresses):
    assert list(ask(values, environ, file).settings.bind.addresses) == addresses


def test_an_address_that_is_set_aside_is_said(ask):
    resolved = ask({"port": "9"}, {}, 'bind = ":80"')
    assert resolved.notes == ("bind from procmgr.toml is set aside by port from --port",)
    assert resolved.origins["bind"].level is Level.DEFAULT


def test_addresses_of_settings_made_by_hand():
    assert BindSettings(host="::1").addresses == (TCP("::1", 8000),)


# --- the name ---------------------------------------------------------------------------------------------------


def test_the_name_is_the_given_one_else_the_files_stem_else_the_module(ask, tmp_path):
    assert ask(app="pkg.web:app").settings.process.name == "pkg.web"
    (tmp_path / "my shop.toml").touch()
    assert ask(config=Path("my shop.toml")).settings.process.name == "my-shop"
    assert ask({"name": "web@1"}, config=Path("my shop.toml")).settings.process.name == "web@1"


def test_a_pyproject_does_not_give_its_stem_as_the_name(ask, tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.procmgr]\nworkers = 2")
    resolved = ask()
    assert (resolved.settings.pool.workers, resolved.settings.process.name) == (2, "main")


# --- mistakes ---------------------------------------------------------------------------------------------------

NUMBER = "expected a whole number from 1 to 500, or 'auto'"

MISTAKES = [
    ({"workers": "many"}, {}, "", UsageError, f"workers: 'many' from --workers: {NUMBER}"),
    ({}, {"PROCMGR_WORKERS": "many"}, "", ConfigError, f"workers: 'many' from PROCMGR_WORKERS: {NUMBER}"),
    ({}, {"WEB_CONCURRENCY": "0"}, "", ConfigError, f"workers: '0' from WEB_CONCURRENCY: {NUMBER}"),
    ({}, {}, "workers = 0", ConfigError, f"workers: 0 from procmgr.toml: {NUMBER}"),
    ({}, {}, "workers = true", ConfigError, f"workers: true from procmgr.toml: {NUMBER}"),
    ({}, {"PORT": "http"}, "", ConfigError, "port: 'http' from PORT: expected a whole number from 0 to 65535"),
    (
        {"bind": ("8000",)},
        {},
        "",
        UsageError,
        "bind: '8000' from --bind: a port alone is ambiguous; write 127.0.0.1:8000, or :8000 for every interface",
    ),
    (
        {"host": "localhost:80"},
        {},
        "",
        UsageError,
        "host: 'localhost:80' from --host: expected a host name or address without a port, as in 127.0.0.1 or ::1",
    ),
    (
        {"loop": "winloop"},
        {},
        "",
        UsageError,
        "loop: 'winloop' from --loop: that is for Windows, procmgr runs on Linux; expected auto, asyncio or uvloop",
    ),
    (
        {"interface": "wsgi", "lifespan": "on"},
        {},
        "",
        UsageError,
        "lifespan: on from --lifespan: WSGI applications have none; expected auto or off",
    ),
    (
        {},
        {},
        "umask = 22",
        ConfigError,
        'umask: 22 from procmgr.toml: expected octal digits from 0 to 777 (a string in TOML), as in "022"',
    ),
    ({}, {}, "wokers = 2", ConfigError, "procmgr.toml: unknown key 'wokers'; did you mean workers?"),
    ({}, {}, "x_y_z = 2", ConfigError, "procmgr.toml: unknown key 'x_y_z'"),
    (
        {},
        {},
        "timeout_graceful_shutdown = 2",
        ConfigError,
        "procmgr.toml: unknown key 'timeout_graceful_shutdown'; procmgr calls it graceful_timeout",
    ),
    ({}, {}, "wsgi_app = 'a:b'", ConfigError, "procmgr.toml: unknown key 'wsgi_app'; procmgr calls it app"),
    ({}, {}, "http2 = true", ConfigError, "procmgr.toml: http2 is not available in this version"),
    (
        {},
        {},
        "[pool]\nworkers = 2",
        ConfigError,
        "procmgr.toml: unknown key 'pool'; keys stand at the top level, not in tables",
    ),
    (
        {},
        {},
        "log-level = 'info'\nlog_level = 'info'",
        ConfigError,
        "procmgr.toml: log_level is given twice, with - and with _",
    ),
    ({}, {}, "workers = 2\nhost = \nport = 1", ConfigError, "procmgr.toml:2: Invalid value at column 8"),
    ({"uds": "/a", "port": "1"}, {}, "", UsageError, "--uds and --port exclude each other; expected only one of them"),
    (
        {"bind": (":1",), "host": "::1"},
        {},
        "",
        UsageError,
        "--bind and --host exclude each other; expected only one of them",
    ),
    (
        {},
        {"PROCMGR_BIND": ":1", "PROCMGR_UDS": "/a"},
        "",
        ConfigError,
        "PROCMGR_BIND and PROCMGR_UDS exclude each other; expected only one of them",
    ),
    (
        {},
        {},
        "bind = ':1'\nport = 2",
        ConfigError,
        "bind and port in procmgr.toml exclude each other; expected only one of them",
    ),
    (
        {"log_file": "a.log"},
        {},
        "log_config = 'x.ini'",
        ConfigError,
        "log_config: 'x.ini' from procmgr.toml: No such file or directory",
    ),
    ({"chdir": "nowhere"}, {}, "", UsageError, "chdir: 'nowhere' from --chdir: No such file or directory"),
    (
        {"app_dir": "procmgr.toml"},
        {},
        "",
        UsageError,
        "app_dir: 'procmgr.toml' from --app-dir: that is no directory",
    ),
    (
        {},
        {"PROCMGR_ENV_FILE": ".env"},
        "",
        ConfigError,
        "env_file: '.env' from PROCMGR_ENV_FILE: No such file or directory",
    ),
    ({}, {}, "log_config = '.'", ConfigError, "log_config: '.' from procmgr.toml: that is a directory"),
    (
        {"workers": "500"},
        {},
        "reload_surge = 50",
        ConfigError,
        "reload_surge: 50 from procmgr.toml: expected at most 24 with 500 workers",
    ),
    ({"env": ("KEY",)}, {}, "", UsageError, "env: 'KEY' from --env: expected NAME=VALUE"),
    ({"headers": ("a b: c",)}, {}, "", UsageError, "headers: 'a b: c' from --header: expected 'Name: value'"),
    (
        {"app": "src/main.py"},
        {},
        "",
        UsageError,
        (
            "app: 'src/main.py' from the command line: that is a path; expected a module and an attribute, as in "
            "src.main:app"
        ),
    ),
    (
        {"app": "main.py"},
        {},
        "",
        UsageError,
        "app: 'main.py' from the command line: that is a path; expected a module and an attribute, as in main:app",
    ),
    (
        {"app": "path/to/x.py:application"},
        {},
        "",
        UsageError,
        (
            "app: 'path/to/x.py:application' from the command line: that is a path; expected "
            "a module and an attribute, "
            "as in path.to.x:application"
        ),
    ),
    (
        {"app": "main"},
        {},
        "",
        UsageError,
        (
            "app: 'main' from the command line: the attribute is missing; expected a module and an attribute, as in "
            "main:app"
        ),
    ),
    (
        {"proxy_protocol": True, "forwarded_allow_ips": ""},
        {},
        "",
        UsageError,
        (
            "proxy_protocol from --proxy-protocol: forwarded_allow_ips from --forwarded-allow-ips trusts nobody, so "
            "every connection would be closed; expected your proxies there"
        ),
    ),
    (
        {"admin_bind": ("127.0.0.1:8000",)},
        {},
        "",
        UsageError,
        (
            "admin_bind: '127.0.0.1:8000' from --admin-bind: port from default has '127.0.0.1:8000' already; "
            "expected an address of its own for each"
        ),
    ),
    (
        {},
        {"PROCMGR_PORT": "9000"},
        "agent_bind = ':9000'",
        ConfigError,
        (
            "agent_bind: ':9000' from procmgr.toml: port from PROCMGR_PORT has '127.0.0.1:9000' already; "
            "expected an address of its own for each"
        ),
    ),
    (
        {"bind": ("unix:/run/a.sock,mode=0660",), "control": "/run/./a.sock"},
        {},
        "",
        UsageError,
        (
            "control: 'unix:/run/./a.sock' from --control: bind from --bind has 'unix:/run/a.sock,mode=0660' already; "
            "expected an address of its own for each"
        ),
    ),
    (
        {"bind": ("[::]:8000", "[::1]:8000")},
        {},
        "",
        UsageError,
        (
            "bind: '[::1]:8000' from --bind: bind from --bind has '[::]:8000' already; "
            "expected an address of its own for each"
        ),
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake[-1][:50] for mistake in MISTAKES])
def test_a_mistake_is_one_line_with_origin_value_and_what_would_be_right(ask, mistake):
    values, environ, file, error, line = mistake
    with pytest.raises(error) as caught:
        ask(values, environ, file)
    assert str(caught.value) == line


def test_no_application_anywhere_is_a_usage_error_with_an_example(ask):
    with pytest.raises(UsageError, match="procmgr main:app"):
        ask(app=None)


def test_the_application_may_come_from_file_or_environment(ask):
    assert ask(app=None, file="app = 'a:b'").settings.app.app == "a:b"
    assert ask(app=None, environ={"PROCMGR_APP": "c:d"}).settings.app.app == "c:d"


def test_a_log_file_and_a_log_configuration_exclude_each_other(ask, tmp_path):
    (tmp_path / "logging.ini").touch()
    for name, flag in {"log_file": "--log-file", "access_log_file": "--access-log-file"}.items():
        with pytest.raises(UsageError, match=f"{flag} and --log-config exclude each other"):
            ask({name: "a.log", "log_config": "logging.ini"})


def test_a_jitter_without_a_limit_is_noted(ask):
    assert ask({"max_requests_jitter": "5"}).notes == ("max_requests_jitter means nothing without max_requests",)
    assert ask({"threads": "5"}).notes == ("threads means nothing without interface wsgi",)
    assert ask({"threads": "5", "interface": "wsgi"}).notes == ()


def test_app_dir_counts_from_chdir(ask, tmp_path):
    (tmp_path / "release" / "src").mkdir(parents=True)
    assert ask({"chdir": "release", "app_dir": "src"}).settings.app.app_dir == "src"


# --- the file ---------------------------------------------------------------------------------------------------


def locate(cwd, system, config=None, **environ):
    file = sources.find(config, environ, cwd, system=system)
    return file and (file.path, file.keys.get("workers"))


def test_the_first_file_found_is_the_only_one(tmp_path):
    """--config, else PROCMGR_CONFIG, else ./procmgr.toml, else pyproject's table, else the system's."""
    system = tmp_path / "system.toml"
    assert locate(tmp_path, system) is None
    system.write_text("workers = 1")
    assert locate(tmp_path, system) == (system, 1)
    project = tmp_path / "pyproject.toml"
    project.write_text("[project]\nname = 'x'")
    assert locate(tmp_path, system) == (system, 1)
    project.write_text("[tool.procmgr]\nworkers = 2")
    assert locate(tmp_path, system) == (project, 2)
    own = tmp_path / "procmgr.toml"
    own.write_text("workers = 3")
    assert locate(tmp_path, system) == (own, 3)
    (tmp_path / "env.toml").write_text("workers = 4")
    assert locate(tmp_path, system, PROCMGR_CONFIG="env.toml") == (tmp_path / "env.toml", 4)
    (tmp_path / "line.toml").write_text("workers = 5")
    assert locate(tmp_path, system, Path("line.toml"), PROCMGR_CONFIG="env.toml") == (tmp_path / "line.toml", 5)
    assert locate(tmp_path, system, Path("pyproject.toml")) == (project, 2)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("nothing.toml", None, "--config: nothing.toml: No such file or directory; expected a TOML file"),
        (
            "conf.py",
            b"workers = 2",
            "--config: conf.py is Python; expected a TOML file, as --from-gunicorn makes of gunicorn's",
        ),
        (".", None, "--config: . is a directory; expected a TOML file"),
        ("pyproject.toml", b"", "--config: pyproject.toml has no table [tool.procmgr]"),
    ],
)
def test_a_bad_config_option_is_a_usage_error(tmp_path, name, content, line):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        sources.find(Path(name), {}, tmp_path)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a = 1\n\xff = 2", "procmgr.toml:2: not UTF-8, as TOML must be"),
        (b"a = 1\na = 2", "procmgr.toml:2: Cannot overwrite a value"),
        (b"a = 1\nb = [", "procmgr.toml:2: "),
        (b"a = " + b"9" * 5000, "procmgr.toml:1: "),
        (b"a = " + b"[" * 100_000, "procmgr.toml"),
        (b"# " + b"x" * (1 << 20), "procmgr.toml has more than 1048576 bytes"),
    ],
)
def test_a_broken_file_is_a_configuration_error_with_its_line(tmp_path, content, line):
    (tmp_path / "procmgr.toml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        sources.find(None, {}, tmp_path)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_keys_may_be_spelt_with_hyphens(ask):
    assert ask(file="log-level = 'debug'").settings.logs.log_level == "debug"


def test_env_and_headers_may_be_tables(ask):
    settings = ask(file="[env]\nA = 'b'\n[headers]\nX-Y = 'z'").settings
    assert (settings.app.env, settings.http.headers) == ((("A", "b"),), (("X-Y", "z"),))


# --- reload -----------------------------------------------------------------------------------------------------


def test_changes_are_told_apart_by_what_a_reload_does_with_them(ask):
    old = ask(file="workers = 2\nreload_surge = '50%'").settings
    new = ask(file="workers = 3\nkeep_alive = 1\nbind = ':80'\npid = '/run/x'").settings
    changed = changes(old, new)
    assert changed.live == {"workers", "reload_surge"}
    assert changed.roll == {"keep_alive", "bind"}
    assert changed.restart == {"pid"}


def test_nothing_changes_between_equal_settings(ask):
    settings = ask().settings
    assert not any((changes(settings, settings).live, changes(settings, settings).roll))
    assert not changes(settings, ask().settings).restart


@pytest.mark.parametrize("entry", TABLE.values(), ids=lambda entry: entry.name)
def test_a_change_of_any_setting_is_seen(ask, tmp_path, monkeypatch, entry):
    monkeypatch.setattr(immortal, "unavailable", lambda: "")
    (tmp_path / "src").mkdir()
    for name in (".env", "logging.toml", "tls.pem"):
        (tmp_path / name).touch()
    kind = entry.setting.kind
    file = str(tmp_path / "tls.pem")
    places = {"chdir": str(tmp_path), **dict.fromkeys(("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"), file)}
    example = places.get(entry.name, kind.example)
    beside = {"ssl_keyfile": {"ssl_certfile": file}, "ssl_cert_reqs": {"ssl_ca_certs": file}}.get(entry.name, {})
    other = {"true": "false", "30": "31"}.get(example) if kind.parse(example) == entry.value else None
    if entry.name == "app":
        other = "other:app"
    changed = changes(ask(beside).settings, ask({**beside, entry.name: other or example}).settings)
    where = {Applies.LIVE: changed.live, Applies.ROLL: changed.roll, Applies.RESTART: changed.restart}
    assert entry.name in where[entry.setting.applies]


def test_no_repr_shows_a_secret(ask):
    """A repr ends in logs."""
    values = {"app": "main:app", "env": ("KEY=hunter2",)}
    invocation = Invocation(values=values, config=None, environ={"KEY": "hunter2"}, cwd=Path("/"))
    resolved = ask({"env": ("KEY=hunter2",)})
    assert resolved.settings.app.env == (("KEY", "hunter2"),)
    assert "hunter2" not in repr((invocation, resolved))


def test_surge_in_percent_comes_through(ask):
    assert ask({"reload_surge": "25%"}).settings.pool.reload_surge == Surge(25, percent=True)


def test_addresses_that_can_stand_side_by_side_are_no_clash(ask):
    bind = (":8000", ":8000", "[::]:8000", "ip6-localhost:8000", "127.0.0.1:0", ":0", "unix:@a", "unix:a", "fd://3")
    ask({"bind": bind, "admin_bind": ("[::]:8001", ":8001"), "agent_bind": (":0", "unix:@b"), "control": "off"})
