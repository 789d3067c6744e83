"""Immortal objects: what is made so, what never is, and which interpreters cannot."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import textwrap

import pytest

from procmgr.config.resolve import Invocation, resolve
from procmgr.errors import ConfigError, UsageError
from procmgr.process import immortal

able = pytest.mark.skipif(bool(immortal.unavailable()), reason="this interpreter counts all references")

SET_UP = """
import asyncio, collections, datetime, decimal, enum, gc, io, re, socket, sys, threading, types, typing, weakref
from procmgr.process.immortal import immortalize

def lives_for_ever(thing):
    return sys.getrefcount(thing) == sys.getrefcount(None)

class Plain:
    def __init__(self): self.inner = f"inner {id(self)}"
class Slotted:
    __slots__ = ("value", "__weakref__")
class Final(Plain):
    def __del__(self): pass
class Pair(typing.NamedTuple):
    left: int
class Box(typing.Generic[typing.TypeVar("T")]):
    pass
class Meta(type):
    __hash__ = None
    def __getattribute__(cls, name): raise RuntimeError("nobody asked")
class Odd(metaclass=Meta):
    pass
class Local(threading.local):
    pass
class Proxy:
    @property
    def __class__(self): raise RuntimeError("nobody asked")
Number = enum.IntEnum("Number", "ONE")
big = lambda: int("9" * 30)
"""


def run(code: str) -> None:
    """Run code in a process of its own: what is immortal stays so."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", SET_UP + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


PLAIN = (
    "f'text {len(sys.path)}'",
    "bytes(1000)",
    "bytearray(10)",
    "big()",
    "len(sys.path) / 7",
    "complex(1, 2)",
    "range(10**9)",
    "[big()]",
    "(big(), [])",
    "{big(): 1}",
    "{big()}",
    "frozenset([big()])",
    "collections.deque([1])",
    "collections.OrderedDict(a=1)",
    "collections.defaultdict(list)",
    "datetime.datetime(2020, 1, 1)",
    "decimal.Decimal('1.5')",
    "Plain()",
    "Slotted()",
    "Pair(1)",
    "Box()",
    "Number.ONE",
    "Plain",
    "Odd",
    "lambda: 0",
    "(lambda: 0).__code__",
    "Plain().__init__",
    "types.ModuleType('m')",
    "re",
)

OTHERS = (
    "Final()",
    "open('/dev/null')",
    "io.BytesIO(b'x')",
    "socket.socket()",
    "threading.Lock()",
    "Local()",
    "(i for i in [])",
    "sys._getframe()",
    "ValueError()",
    "weakref.ref(Plain)",
    "iter([])",
    "memoryview(b'x')",
    "object.__new__(type('Final2', (Final,), {}))",
)


@able
def test_plain_data_and_code_become_immortal():
    run(f"""
    held = {{text: eval(text) for text in {PLAIN}}}
    immortalize()
    mortal = [text for text in held if not lives_for_ever(held[text])]
    assert mortal == [], mortal
    """)


@able
def test_what_has_an_end_that_means_something_stays_mortal():
    run(f"""
    held = {{text: eval(text) for text in {OTHERS}}}
    immortalize()
    immortal = [text for text in held if lives_for_ever(held[text])]
    assert immortal == [], immortal
    """)


@able
def test_an_object_that_somebody_watches_stays_mortal_and_its_end_is_told():
    run("""
    told = []
    watched, registered = Plain(), Plain()
    weakref.finalize(watched, told.append, "gone")
    known = weakref.WeakValueDictionary(it=registered)
    immortalize()
    del watched, registered
    assert told == ["gone"] and not known
    """)


@able
def test_what_untracked_containers_hold_becomes_immortal():
    run("""
    held = {big(): (big(), ((f"text {len(sys.path)}", big()),))}
    function = eval("lambda: 'a constant ' + (123456789012345678901234567890, 'another constant')[1]")
    gc.collect()
    immortalize()
    (key, value), = held.items()
    assert lives_for_ever(key) and lives_for_ever(value[0]) and lives_for_ever(value[1][0][0])
    assert all(map(lives_for_ever, function.__code__.co_consts))
    """)


@able
def test_text_in_what_stays_mortal_becomes_immortal():
    run("""
    error = ValueError(f"text {len(sys.path)}")
    immortalize()
    assert lives_for_ever(error.args[0])
    """)


@able
def test_objects_that_were_frozen_before_become_immortal():
    run("""
    held = [Plain()]
    gc.freeze()
    immortalize()
    assert lives_for_ever(held[0]) and lives_for_ever(held[0].inner)
    """)


@able
def test_no_code_of_the_application_runs():
    run("""
    held = [Proxy(), Odd, type.__call__(Odd)]
    immortalize()
    """)


@able
def test_what_is_immortal_works_as_before_and_what_comes_later_is_freed():
    run("""
    items, numbers, text = {f"key {i}": [i] for i in range(1000)}, list(range(300, 2000)), "a" * 5000
    immortalize()
    gc.freeze()
    for _ in range(3):
        for i in range(1000):
            items[f"key {i}"] = Plain()
            numbers.append(numbers.pop(0))
            text += "b"
        gc.collect()
    last = weakref.ref(items["key 7"])
    items.clear()
    assert last() is None
    assert text == "a" * 5000 + "b" * 3000 and sorted(numbers) == list(range(300, 2000))
    class Later(Plain): pass
    assert isinstance(Later(), Plain) and Number(1) is Number.ONE
    gc.unfreeze()
    gc.collect()
    async def main(): return await asyncio.to_thread(sum, numbers)
    assert asyncio.run(main()) == sum(numbers)
    """)


@able
def test_the_interpreter_ends_as_usual():
    run("""
    import atexit, logging
    atexit.register(print, "ended")
    logging.getLogger("x").warning("said")
    immortalize()
    """)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("sys.hexversion", 0x030B09F0, "this needs CPython 3.12 or newer"),
        ("sys.gettotalrefcount", len, "this is a debug build of Python"),
        ("sys.getobjects", len, "this is a debug build of Python"),
        ("sysconfig.get_config_var", lambda name: name == "Py_GIL_DISABLED", "built without the GIL"),
    ],
)
def test_an_interpreter_that_cannot_says_why(monkeypatch, name, value, reason):
    if name != "sys.hexversion":
        monkeypatch.setattr(sys, "hexversion", 0x030C00F0)
    if name != "sysconfig.get_config_var":
        monkeypatch.setattr(sysconfig, "get_config_var", lambda _: 0)
    monkeypatch.setattr(f"procmgr.process.immortal.{name}", value, raising=False)
    assert reason in immortal.unavailable()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python 3.11 counts all references")
def test_the_probe_finds_out_that_references_to_none_are_counted(monkeypatch):
    monkeypatch.setattr(sys, "hexversion", 0x030C00F0)
    assert immortal.unavailable() == "this interpreter keeps reference counts in another way"


@able
def test_the_probe_leaves_nothing_behind():
    before = sys.getallocatedblocks()
    for _ in range(100):
        assert immortal.unavailable() == ""
    assert sys.getallocatedblocks() < before + 100


def test_the_setting_is_refused_in_one_line_where_the_interpreter_cannot(monkeypatch, tmp_path):
    monkeypatch.setattr(immortal, "unavailable", lambda: "this needs a newer one")
    given = {"app": "main:app", "preload": True, "preload_immortal": True}
    with pytest.raises(UsageError, match=r"^preload_immortal from --preload-immortal: this needs a newer one$"):
        resolve(Invocation(given, None, {}, tmp_path))
    with pytest.raises(ConfigError, match=r"PROCMGR_PRELOAD_IMMORTAL: this needs"):
        resolve(Invocation({"app": "main:app"}, None, {"PROCMGR_PRELOAD_IMMORTAL": "1"}, tmp_path))


def test_it_means_nothing_without_preload(monkeypatch, tmp_path):
    monkeypatch.setattr(immortal, "unavailable", lambda: "")
    resolved = resolve(Invocation({"app": "main:app", "preload_immortal": True}, None, {}, tmp_path))
    assert "preload_immortal means nothing without preload" in resolved.notes
