"""The kinds of values: what each reads, refuses and renders."""

import math

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from procmgr.config import types
from procmgr.config.kind import BadValue, Kind, Shape
from procmgr.config.settings import TABLE
from procmgr.config.types import Surge

ENTRIES = pytest.mark.parametrize("entry", TABLE.values(), ids=lambda entry: entry.name)


JUNK = {
    "object": object(),
    "bytes": b"bytes",
    "nan": math.nan,
    "inf": math.inf,
    "negative": -1,
    "large": 10**30,
    "beyond floats": 10**400,
    "beyond str": 1 << 99_999,
    "list": [object()],
    "table": {"a": 1},
    "none": None,
}


def through_toml(kind: Kind, value):
    return kind.of(tomli.loads(f"value = {kind.toml(value)}")["value"])


@ENTRIES
def test_every_example_is_read_and_survives_toml(entry):
    kind = entry.setting.kind
    value = kind.parse(kind.example)
    assert through_toml(kind, value) == value


@ENTRIES
def test_every_default_that_is_a_value_survives_toml(entry):
    kind = entry.setting.kind
    if entry.default != "required" and entry.value is not None and entry.value != "":
        assert through_toml(kind, entry.value) == entry.value


@ENTRIES
@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_junk_of_any_type_is_a_bad_value_and_never_another_error(entry, junk):
    with pytest.raises(BadValue):
        entry.setting.kind.of(junk)


@ENTRIES
@settings(max_examples=25)
@given(text=st.text(max_size=20))
def test_any_text_is_read_or_refused_with_a_reason(entry, text):
    refused = ""
    try:
        entry.setting.kind.parse(text)
    except BadValue as error:
        refused = str(error)
    assert "\n" not in refused


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (types.count(1, 500), "8", 8),
        (types.count(1, 500), "008", 8),
        (types.count(1, 500, auto=lambda: 6), "AUTO", 6),
        (types.count(1, 500, auto=lambda: 1000), "auto", 500),
        (types.limit(10), "0", None),
        (types.limit(10), "10", 10),
        (types.seconds(60), "0", 0.0),
        (types.seconds(60), "1.5", 1.5),
        (types.seconds(60), ".5", 0.5),
        (types.octal(), "022", 0o22),
        (types.octal(), "22", 0o22),
        (types.octal(), "0o22", 0o22),
        (types.switch(), "Yes", True),
        (types.switch(), "off", False),
        (types.surge(500), "2", Surge(2)),
        (types.surge(500), "25%", Surge(25, percent=True)),
        (types.choice(("info", "debug")), "INFO", "info"),
        (types.choice(("info", "debug"), same={"verbose": "debug"}), "verbose", "debug"),
        (types.host(), "[::1]", "::1"),
        (types.host(), "example.org", "example.org"),
        (types.target(), "pkg.main:make.app", "pkg.main:make.app"),
        (types.variable(), "A=b=c", ("A", "b=c")),
        (types.variable(), "A=", ("A", "")),
        (types.header(), "X-A:  b: c ", ("X-A", "b: c")),
        (types.many(types.count(0, 9), separator=None), " 3 4\n5 ", (3, 4, 5)),
        (types.many(types.header()), "A: b c\nD: e", (("A", "b c"), ("D", "e"))),
        (types.account("USER", "www"), "33", "33"),
    ],
)
def test_text_means_this_value(kind, text, value):
    assert kind.parse(text) == value


@pytest.mark.parametrize(
    ("kind", "value", "meant"),
    [
        (types.count(1, 500, auto=lambda: 6), "auto", 6),
        (types.seconds(60), 30, 30.0),
        (types.seconds(60, least=2), 2, 2.0),
        (types.seconds(60, least=2), 0, 0.0),
        (types.account("USER", "www"), 33, "33"),
        (types.surge(500), 3, Surge(3)),
        (types.surge(500), "100%", Surge(100, percent=True)),
        (types.many(types.address(), separator=None), ":80", (":80",)),
        (types.many(types.address(), separator=None), [":80", "unix:/a b"], (":80", "unix:/a b")),
        (types.many(types.variable(), table=True), {"A": "b", "C": ""}, (("A", "b"), ("C", ""))),
        (types.many(types.header(), table=True), {"A": "b"}, (("A", "b"),)),
        (types.many(types.header(), table=True), [("A", "b"), "C: d"], (("A", "b"), ("C", "d"))),
    ],
)
def test_toml_means_this_value(kind, value, meant):
    assert kind.of(value) == meant


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (types.count(1, 500), "8"),
        (types.count(1, 500), True),
        (types.count(1, 500), 8.0),
        (types.count(1, 500), 501),
        (types.seconds(60, zero=False), 0),
        (types.seconds(60, least=2), 1),
        (types.seconds(60), True),
        (types.seconds(60), "30"),
        (types.octal(), 22),
        (types.octal(), 0o22),
        (types.switch(), "true"),
        (types.switch(), 1),
        (types.choice(("info", "debug")), 1),
        (types.account("USER", "www"), True),
        (types.many(types.address(), separator=None), {"a": "b"}),
        (types.many(types.variable(), table=True), {"A": 1}),
    ],
)
def test_toml_of_another_type_is_refused(kind, value):
    with pytest.raises(BadValue):
        kind.of(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *[
            (types.count(1, 500), text)
            for text in ("", "0", "501", "-1", "+1", "1_0", " 1", "1.0", "٣", "1e2", "9" * 99)
        ],
        *[(types.seconds(60), text) for text in ("", "-1", "nan", "inf", "1e1", "60.5", "1s", ".", "9" * 400)],
        *[(types.octal(), text) for text in ("", "8", "1000", "0x1", "-1", "07777")],
        *[(types.surge(500), text) for text in ("", "0", "0%", "101%", "501", "%", "5 %", "-5%")],
        *[(types.target(), text) for text in ("", "main", "main:", ":app", "main.py", "a/b.py:app", "a b:c", "a:b:c")],
        *[(types.host(), text) for text in ("", "0:80", "a b", "[::1", "http://a")],
        *[(types.variable(), text) for text in ("", "A", "=b", "1A=b", "A B=c", "A=\0")],
        *[(types.header(), text) for text in ("", "A", ": b", "A : b", "A: b\r\nC: d", "A: €", "Ä: b")],
        *[(types.instance_name(), text) for text in ("", "../x", "a/b", ".a", "a" * 65, "a b", "-a")],
        *[(types.account("USER", "www"), text) for text in ("", "-x", "a\nb", "4294967295", "9" * 9999)],
        (types.path("FILE", "x"), ""),
        (types.path("FILE", "x"), "a\0b"),
    ],
)
def test_bad_text_is_refused(kind, text):
    with pytest.raises(BadValue, match=r"expected|header's value"):
        kind.parse(text)


def test_the_value_of_a_variable_is_never_shown():
    """It may be a secret."""
    with pytest.raises(BadValue) as caught:
        types.variable().parse("MY KEY=hunter2")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(BadValue) as caught:
        types.many(types.variable(), table=True).of({"MY KEY": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_what_is_shown_of_a_bad_value_is_bounded():
    with pytest.raises(BadValue) as caught:
        types.count(0, 9).parse("x" * 100_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("surge", "workers", "count"),
    [
        (Surge(1), 8, 1),
        (Surge(25, percent=True), 8, 2),
        (Surge(25, percent=True), 9, 3),
        (Surge(1, percent=True), 1, 1),
        (Surge(100, percent=True), 7, 7),
    ],
)
def test_a_surge_in_percent_is_rounded_up(surge, workers, count):
    assert surge.count(workers) == count


@given(percent=st.integers(1, 100), workers=st.integers(1, 500))
def test_a_surge_is_at_least_one_worker_and_at_most_all(percent, workers):
    assert 1 <= Surge(percent, percent=True).count(workers) <= workers


@given(value=st.floats(0, 60, allow_nan=False).map(lambda value: round(value, 6)))
def test_seconds_survive_toml(value):
    assert through_toml(types.seconds(60), value) == pytest.approx(value, abs=1e-9)


@given(value=st.text(st.characters(exclude_categories=("Cs",)), max_size=30).filter(lambda text: "\0" not in text))
def test_any_text_survives_toml(value):
    assert through_toml(types.text("TEXT", "some text", "x", empty=True), value) == value


def test_only_kinds_of_several_values_have_items():
    for entry in TABLE.values():
        assert (entry.setting.kind.item is not None) == (entry.setting.kind.shape is Shape.MANY)


@pytest.mark.parametrize(
    ("text", "value", "toml"),
    [
        ("0", 0, "0"),
        ("1000", 1000, "1000"),
        ("512M", 512 << 20, '"512M"'),
        ("512MiB", 512 << 20, '"512M"'),
        ("1536m", 1536 << 20, '"1536M"'),
        ("2gb", 2 << 30, '"2G"'),
        ("1024", 1024, '"1K"'),
        ("3T", 3 << 40, '"3T"'),
    ],
)
def test_an_amount_of_memory_is_bytes_in_powers_of_1024(text, value, toml):
    assert types.size().parse(text) == value
    assert types.size().toml(value) == toml


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-1M", "1 M", "1X", "1Mi", "9" * 16, "999999999999999T", "auto"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(BadValue, match=r"512M|to"):
        types.size().parse(text)
