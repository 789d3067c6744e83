"""Plain data and back: what is read equals what was written, and anything else is refused with its place."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from math import inf
from typing import Literal

import pytest

from procmgr.plain import PlainError, dump, find, load


class Colour(Enum):
    RED = "r"


class Level(IntEnum):
    LOW = 1


@dataclass(frozen=True)
class Leaf:
    number: int


@dataclass(frozen=True)
class Other:
    number: int
    text: str = "by default"


@dataclass
class Tree:
    either: Leaf | Other | None
    leaves: tuple[Leaf, ...] = ()
    pair: tuple[str, int] = ("a", 1)
    by_id: dict[int, Leaf] = field(default_factory=dict)
    colour: Colour | None = None
    level: Level = Level.LOW
    seconds: float = inf
    numbers: set[int] = field(default_factory=set)
    word: Literal["on", "off"] | None = "on"
    flag: bool | None = None


def round_trip(value):
    return load(type(value), json.loads(json.dumps(dump(value), allow_nan=False)))


@pytest.mark.parametrize(
    "tree",
    [
        Tree(None),
        Tree(Other(3), leaves=(Leaf(1), Leaf(2)), by_id={7: Leaf(7)}, colour=Colour.RED, numbers={3, 1}),
        Tree(Leaf(1), seconds=-inf, word=None, flag=True, pair=("\udcff", 2)),
        Tree(Leaf(1), seconds=0.1 + 0.2, word="off", flag=False),
    ],
)
def test_what_is_read_equals_what_was_written(tree):
    assert round_trip(tree) == tree


def test_a_number_that_is_a_member_of_an_enumeration_is_a_number():
    assert load(Leaf, dump(Leaf(Level.LOW))) == Leaf(1)


def test_members_of_a_union_with_the_same_fields_stay_what_they_were():
    assert isinstance(round_trip(Tree(Other(1))).either, Other)


def test_a_field_that_the_writer_did_not_know_takes_its_default():
    assert load(Other, {"is": "Other", "number": 1}) == Other(1)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"is": "Other", "number": 1, "more": 2}, "Other: there is no more"),
        ({"is": "Other"}, "Other: number is missing"),
        ({"is": "Other", "number": "1"}, "Other.number: a value of type str"),
        ({"is": "Other", "number": True}, "Other.number: a value of type bool"),
        ({"is": "Leaf", "number": 1}, "Other: "),
        (None, "Other: a value of type NoneType"),
    ],
)
def test_what_does_not_belong_there_is_refused_with_its_place(data, place):
    with pytest.raises(PlainError, match="^" + place):
        load(Other, data)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"leaves": [{"is": "Leaf", "number": None}]}, r"Tree\.leaves\[0\]\.number"),
        ({"by_id": {"x": {"is": "Leaf", "number": 1}}}, r"Tree\.by_id"),
        ({"level": 2}, r"Tree\.level"),
        ({"level": True}, r"Tree\.level"),
        ({"colour": "BLUE"}, r"Tree\.colour"),
        ({"seconds": "nan"}, r"Tree\.seconds"),
        ({"pair": ["a"]}, r"Tree\.pair"),
        ({"word": "maybe"}, r"Tree\.word"),
        ({"either": {"is": "Nobody"}}, r"Tree\.either"),
    ],
)
def test_the_place_of_a_mistake_is_named_however_deep(change, place):
    with pytest.raises(PlainError, match=place):
        load(Tree, {**dump(Tree(None)), **change})


def test_a_refusal_does_not_show_the_value_which_may_be_a_secret():
    with pytest.raises(PlainError) as refusal:
        load(Leaf, {"is": "Leaf", "number": "hunter2"})
    assert "hunter2" not in str(refusal.value)


def test_what_has_no_plain_form_is_refused_when_it_is_written():
    with pytest.raises(TypeError, match="object"):
        dump([object()])


def test_instances_are_found_wherever_they_are():
    tree = Tree(Leaf(1), leaves=(Leaf(2),), by_id={5: Leaf(3)})
    assert find(tree, Leaf) == [Leaf(1), Leaf(2), Leaf(3)]
