"""One table: whatever is made from it has the same settings, and the files in the tree are what it makes."""

import json
import re
from pathlib import Path

import pytest
import tomli

from procmgr.cli.options import parse
from procmgr.config import reference, sources
from procmgr.config.declare import Applies
from procmgr.config.foreign import ABSENT
from procmgr.config.kind import Shape
from procmgr.config.settings import GROUPS, TABLE, Settings
from procmgr.config.sources import File

ROOT = Path(__file__).parents[2]
FILES = {"toml": "etc/procmgr.toml", "schema": "etc/procmgr.schema.json", "markdown": "docs/settings.md"}
ENTRIES = pytest.mark.parametrize("entry", TABLE.values(), ids=lambda entry: entry.name)


@pytest.mark.parametrize("what", FILES)
def test_the_file_in_the_tree_is_what_the_table_makes(what):
    """If not: python -m procmgr.config.reference WHAT > FILE."""
    assert (ROOT / FILES[what]).read_text() == reference.RENDERERS[what]()


def test_all_that_is_made_from_the_table_has_the_same_settings():
    documented = re.findall(r"^\| `(\w+)` \|", reference.markdown(), re.MULTILINE)
    in_toml = re.findall(r"^#(\w+) = ", reference.toml(), re.MULTILINE)
    in_schema = list(json.loads(reference.schema())["properties"])
    on_command_line = ["app", *(name for name in TABLE if reference.spellings(TABLE[name]))]
    assert documented == in_toml == in_schema == on_command_line == list(TABLE)


@ENTRIES
def test_the_command_line_takes_every_setting_under_every_name(entry):
    kind = entry.setting.kind
    for name in reference.spellings(entry) or [""]:
        if kind.shape is Shape.SWITCH:
            given, value = [name], not name.startswith("--no-")
        else:
            given, value = [name, kind.example] if name else [kind.example], kind.example
        expected = (value,) if kind.shape is Shape.MANY else value
        assert parse(given).values == {entry.name: expected}


@ENTRIES
def test_the_environment_takes_every_setting(entry):
    layers, notes = sources.environment({entry.variable: entry.setting.kind.example})
    assert list(layers[0]) == [entry.name]
    assert notes == []


@ENTRIES
def test_the_example_file_shows_a_line_that_is_right_for_every_setting(entry):
    line = re.search(rf"^#({entry.name} = .*)$", reference.toml(), re.MULTILINE)[1]
    layer = sources.file_layer(File(Path("x.toml"), "x.toml", tomli.loads(line)))
    assert list(layer) == [entry.name]
    schema = pytest.importorskip("jsonschema").Draft202012Validator(json.loads(reference.schema()))
    assert list(schema.iter_errors(tomli.loads(line))) == []


def test_the_schema_is_one_and_refuses_what_is_no_setting():
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    validator.check_schema(json.loads(reference.schema()))
    assert not validator(json.loads(reference.schema())).is_valid({"nonsense": 1})


def test_the_example_file_sets_nothing():
    assert tomli.loads(reference.toml()) == {}


def test_no_line_of_the_example_file_is_wider_than_a_screen():
    assert max(map(len, reference.toml().splitlines())) <= 120


def test_no_name_means_two_things():
    """Flags, variables, and the names that other programs have for our settings."""
    flags = [flag for entry in TABLE.values() for flag in reference.spellings(entry)]
    variables = [variable for entry in TABLE.values() for variable in (entry.variable, *entry.setting.variables)]
    for names in (
        flags,
        variables,
        [entry.setting.uvicorn for entry in TABLE.values() if entry.setting.uvicorn],
        [entry.setting.gunicorn for entry in TABLE.values() if entry.setting.gunicorn],
    ):
        assert len(names) == len(set(names))
    assert not set(flags) & set(ABSENT)


def test_every_group_of_the_settings_is_in_the_table():
    assert set(GROUPS) == set(Settings.__slots__) == {entry.group for entry in TABLE.values()}


def test_help_is_one_sentence_with_an_end_and_says_something_of_its_own():
    helps = [entry.setting.help for entry in TABLE.values()]
    assert len(set(helps)) == len(helps)
    for text in helps:
        assert text[0].isupper()
        assert text.endswith(".")


def test_what_the_arbiter_decides_by_is_live_and_what_it_holds_is_not():
    live = {name for name, entry in TABLE.items() if entry.setting.applies is Applies.LIVE}
    hooks = {"on_start", "on_ready", "on_reload", "on_stop", "worker_exit"}
    assert live == hooks | {
        *("workers", "timeout", "timeout_boot", "reload_surge", "boot_attempts", "log_level", "shutdown_delay"),
        *("slow_loop", "max_lifetime", "max_lifetime_jitter", "max_memory", "max_memory_hard", "memory_measure"),
    }
