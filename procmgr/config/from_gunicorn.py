"""What a gunicorn configuration means here: from the values of its settings to a configuration file of procmgr.

Nothing is dropped in silence. A setting becomes a line that the table of settings takes, or a remark that says why not
and what to do instead; a value that means what procmgr does anyway needs neither. Where procmgr's default differs from
the gunicorn default that was in force, the old value stands there as a comment, but for the access log, which gunicorn
does not write unless it is told where to: that is switched off.
"""

from __future__ import annotations

import difflib
import os.path
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from procmgr.config.kind import BadValue, Kind, show
from procmgr.config.peers.gunicorn import HOOKS, OPTIONS, SETTINGS
from procmgr.config.settings import TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_COMBINED: Final = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
_PORT: Final = "8000"
_FOR_WSGI: Final = 'a WSGI application needs interface = "wsgi"'
_THREADED: Final = frozenset({"sync", "SyncWorker", "gthread", "ThreadWorker"})
_PATHS: Final = frozenset(
    {"pidfile", "certfile", "keyfile", "ca_certs", "accesslog", "errorlog", "logconfig", "logconfig_json"}
)
_NUMBERS: Final = frozenset(
    {
        *("workers", "threads", "backlog", "timeout", "graceful_timeout", "keepalive"),
        *("max_requests", "max_requests_jitter"),
        *("limit_request_line", "limit_request_fields", "worker_connections", "websocket_max_message_size"),
    }
)
# What gunicorn does by default and procmgr always, or neither.
_USUAL: Final[Mapping[str, object]] = MappingProxyType(
    {
        "protocol": "http",
        "http_protocols": "h1",
        "http2_cleartext": "off",
        "header_map": "drop",
        "http_parser": "auto",
        "sendfile": True,
        "dirty_threads": 1,
        "statsd_prefix": "",
        "suppress_ragged_eofs": True,
    }
)
# gunicorn's defaults that are others here.
_DEFAULTS: Final[Mapping[str, tuple[str, object]]] = MappingProxyType(
    {
        "keepalive": ("keep_alive", 2.0),
        "limit_request_line": ("limit_request_line", 4094),
        "limit_request_fields": ("limit_request_fields", 100),
    }
)
_ACCESS: Final = ("accesslog", "logconfig", "logconfig_dict", "logconfig_json", "syslog")


class Usual(Exception):  # noqa: N818 - it is no error
    """The value means what procmgr does without a line for it."""


class Unfit(Exception):  # noqa: N818 - it is an answer
    """The value has no equivalent; the text says why, and what to do instead."""


@dataclass(slots=True, kw_only=True)
class Translation:
    """A configuration of procmgr in the making.

    `lines` are values in TOML by setting, `sources` the expressions that some were computed by; `remarks` say of a
    setting of gunicorn's what became of it, `defaults` are lines that restore gunicorn's defaults; `strangers` are
    names that gunicorn does not know either.
    """

    lines: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)
    strangers: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, value: object, source: str = "") -> None:
        """Give a setting a value as its kind takes it; raises `BadValue`."""
        kind = TABLE[name].setting.kind
        self.lines[name] = kind.toml(_read(kind, value))
        if source:
            self.sources[name] = source


def translate(values: Mapping[str, object], sources: Mapping[str, str]) -> Translation:
    """Return what the settings `values` of gunicorn become; `sources` are the expressions of the computed ones."""
    made = Translation()
    given = {name: value for name, value in values.items() if name in SETTINGS and value is not None}
    for name in SETTINGS:
        if name in given:
            _take(made, name, given[name], given, sources.get(name, ""))
    _application(made, given)
    _worker_class(made, given)
    _logs(made, given)
    for name, (ours, value) in _DEFAULTS.items():
        if name not in given:
            made.defaults[ours] = TABLE[ours].setting.kind.toml(value)
    made.strangers = {name: _close(name) for name, value in values.items() if name not in SETTINGS and _plain(value)}
    return made


def _take(made: Translation, name: str, value: object, given: Mapping[str, object], source: str) -> None:
    option = OPTIONS[name]
    try:
        if name in HOOKS:
            made.remarks[name] = _hook(name)
        elif name in _CONVERTED:
            for ours, converted in _CONVERTED[name](_placed(name, value, given)).items():
                made.put(ours, converted, source)
        elif option.ours:
            made.put(option.ours[0], _whole(value) if name in _NUMBERS else _placed(name, value, given), source)
        elif value not in (False, 0, "", [], {}, _USUAL.get(name)):
            made.remarks[name] = f"{_shown(value)}: {option.note}"
    except Usual:
        return
    except Unfit as reason:
        made.remarks[name] = f"{_shown(value)}: {reason}"
    except BadValue as error:
        made.remarks[name] = f"{show(error.value)}: {error.reason}"  # which has no secret of raw_env


def _hook(name: str) -> str:
    ours, note = HOOKS[name]
    if not ours:
        return f"no such hook; {note}"
    return f'{ours} = "module:function", {note}; it is given other arguments'


def _read(kind: Kind[object], value: object) -> object:
    """Return what a value means, which gunicorn takes as text or not."""
    if kind.item is not None and isinstance(value, list):
        return kind.of([_text(each) for each in value])
    return kind.parse(value.strip()) if isinstance(value, str) else kind.of(value)


def _text(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _placed(name: str, value: object, given: Mapping[str, object]) -> object:
    """Return `value`, as a path from `chdir` if it is one: gunicorn goes there first, procmgr only in its workers."""
    place = given.get("chdir")
    if not isinstance(place, str):
        return value
    if name == "bind":
        return [f"unix:{_under(place, each[5:])}" if each.startswith("unix:") else each for each in _addresses(value)]
    return _under(place, value) if name in _PATHS and isinstance(value, str) and value not in {"", "-"} else value


def _under(place: str, path: str) -> str:
    return os.path.join(place, path)  # noqa: PTH118 - text, as a person wrote it


# --- settings whose values mean something else here ---------------------------------------------------------------


def _bind(value: object) -> dict[str, object]:
    return {"bind": [_address(each) for each in _addresses(value)]}


def _addresses(value: object) -> list[str]:
    many = value if isinstance(value, list) else str(value).split(",")
    return [str(each).strip() for each in many if str(each).strip()]


def _address(text: str) -> str:
    text = text.removeprefix("tcp://")
    if text.startswith(("unix:", "fd://")):
        return text
    if text.isdecimal():  # gunicorn takes it for a host, as inet_aton(3) does
        raise Unfit(f"a port alone is a host to gunicorn; expected an address, as in :{text}")
    return text if ":" in text.rpartition("]")[2] else f"{text}:{_PORT}"


def _umask(value: object) -> dict[str, object]:
    number = _whole(value)
    if not isinstance(number, int) or not 0 <= number <= 0o777:
        raise Unfit("no mask of permissions")
    return {"umask": f"{number:03o}"}


def _whole(value: object) -> object:
    """Return a number that may be text, in any base that Python writes."""
    try:
        return int(value, 0) if isinstance(value, str) else value
    except ValueError:
        raise Unfit("no number") from None


def _error_log(value: object) -> dict[str, object]:
    if value == "-":  # standard error there, where procmgr writes anyway; here - is standard output
        raise Usual
    return {"log_file": value}


def _access_log(value: object) -> dict[str, object]:
    if value == "-":
        raise Usual
    return {"access_log_file": value}


def _access_format(value: object) -> dict[str, object]:
    return {"access_log_format": "combined" if value == _COMBINED else value}


def _proxy_protocol(value: object) -> dict[str, object]:
    word = str(value).lower().strip()
    if word in {"off", "false", "0", "none"}:
        raise Usual
    return {"proxy_protocol": True}


def _json_config(value: object) -> dict[str, object]:
    if not str(value).endswith(".json"):
        raise Unfit("log_config tells the format by the suffix: call the file .json")
    return {"log_config": value}


def _control_off(value: object) -> dict[str, object]:
    if not value:
        raise Usual
    return {"control": "off"}


def _python_path(value: object) -> dict[str, object]:
    if not value:
        raise Usual
    raise Unfit(
        "gunicorn has these beside the working directory; app_dir replaces that, and is one: "
        "set it if the application is there, else put them in PYTHONPATH"
    )


def _parser(value: object) -> dict[str, object]:
    match value:
        case "auto":
            raise Usual
        case "fast":
            return {"http": "httptools"}
        case "python":
            return {"http": "h11"}
        case _:
            raise Unfit("neither auto nor fast nor python")


def _apart(value: object) -> dict[str, object]:
    """Leave a setting to those below."""
    del value
    raise Usual


_CONVERTED: Final[Mapping[str, Callable[[object], dict[str, object]]]] = MappingProxyType(
    {
        "bind": _bind,
        "umask": _umask,
        "errorlog": _error_log,
        "accesslog": _access_log,
        "access_log_format": _access_format,
        "proxy_protocol": _proxy_protocol,
        "logconfig_json": _json_config,
        "control_socket_disable": _control_off,
        "pythonpath": _python_path,
        "http_parser": _parser,
        "wsgi_app": _apart,
        "worker_class": _apart,
        "syslog": lambda value: _unless(value, "logging of its own goes to syslog by log_config, or by the journal"),
    }
)


def _unless(value: object, reason: str) -> dict[str, object]:
    if value:
        raise Unfit(reason)
    raise Usual


# --- what several settings together mean --------------------------------------------------------------------------


def _application(made: Translation, given: Mapping[str, object]) -> None:
    """Take `wsgi_app`: a module, whose attribute is `application` by default, or a call of a function in it."""
    if "wsgi_app" not in given:
        return
    module, _, attribute = str(given["wsgi_app"]).partition(":")
    name, call, arguments = attribute.partition("(")
    try:
        made.put("app", f"{module}:{name or 'application'}")
        if call:
            made.put("factory", value=True)
    except BadValue as error:
        made.remarks["wsgi_app"] = f"{_shown(given['wsgi_app'])}: {error.reason}"
    if call and arguments.strip() != ")":
        made.remarks["wsgi_app"] = (
            f"{_shown(given['wsgi_app'])}: a factory is called without arguments; write one that is"
        )


def _worker_class(made: Translation, given: Mapping[str, object]) -> None:
    """Take the kind of worker: procmgr has one, which serves ASGI, and WSGI in threads."""
    value = given.get("worker_class")
    known = next(iter(value.values()), "") if isinstance(value, dict) else value
    kind = str(known or "").rpartition(".")[2]
    if kind in {"asgi", "ASGIWorker", "UvicornWorker"}:
        return
    if kind == "UvicornH11Worker":
        made.put("http", "h11")
        made.put("loop", "asyncio")
    elif kind.endswith("UvicornWorker"):
        made.remarks["worker_class"] = f"{kind}: what its CONFIG_KWARGS say are settings here, of the same names"
    elif not kind:
        made.remarks["worker_class"] = f"not in the file: nothing to do for an ASGI application; {_FOR_WSGI}"
    else:
        made.put("interface", "wsgi")
        if kind in _THREADED and "threads" not in given:
            made.put("threads", 1)  # gunicorn's default: the application may not be made for more


def _logs(made: Translation, given: Mapping[str, object]) -> None:
    """Settle who says where logs go: a log configuration is alone here, and without any there is no access log."""
    if "log_config" in made.lines:
        for theirs, ours in (("errorlog", "log_file"), ("accesslog", "access_log_file")):
            if made.lines.pop(ours, None) is not None:
                made.sources.pop(ours, None)
                made.remarks[theirs] = "log_config says where logs go; it excludes a file beside it"
    if not any(given.get(name) for name in _ACCESS):
        made.put("access_log", value=False)
    elif "access_log_format" not in given and "log_config" not in made.lines:
        made.put("access_log_format", "combined")  # gunicorn's default


def _plain(value: object) -> bool:
    """Return whether a name is one that could have been meant as a setting: no function, class or object."""
    return not (isinstance(value, dict) and value.keys() & {"callable", "object"})


def _close(name: str) -> str:
    return next(iter(difflib.get_close_matches(name.lower(), [*SETTINGS], n=1, cutoff=0.8)), "")


def _shown(value: object) -> str:
    if isinstance(value, dict) and value.keys() <= {"callable", "object"}:
        return next(iter(map(str, value.values())), "").removeprefix("__config__.")
    return show(value).replace("\n", " ")
