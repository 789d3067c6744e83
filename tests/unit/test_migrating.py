"""What procmgr says of other programs: every option has an answer, and the page in the tree is made of them."""

import inspect
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from procmgr.config import migrating
from procmgr.config.foreign import ABSENT
from procmgr.config.peers import PEERS, gunicorn
from procmgr.config.peers.model import OWN
from procmgr.config.reference import spellings
from procmgr.config.settings import TABLE

ROOT = Path(__file__).parents[2]
OPTIONS = [pytest.param(option, id=f"{peer.name} {option.name}") for peer in PEERS for option in peer.options]
PEER = {peer.name.lower(): peer for peer in PEERS}


def test_the_page_in_the_tree_is_what_the_program_writes():
    """If not: python -m procmgr.config.migrating > docs/migrating.md."""
    assert (ROOT / "docs/migrating.md").read_text() == migrating.page()


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_an_answer(option):
    assert set(option.ours) <= set(TABLE)
    assert not option.own or option.own in OWN | {"--help"}
    assert option.ours or option.own or option.note or option.stays
    assert not (option.stays and (option.ours or option.own))


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_no_option_is_answered_twice(peer):
    names = [name for option in peer.options for name in migrating._split(option)]
    assert len(names) == len(set(names))


def test_no_row_of_the_page_is_long():
    rows = [line for line in migrating.page().splitlines() if line.startswith("|")]
    assert max(map(len, rows)) <= 160


@pytest.mark.parametrize("name", ["uvicorn", "gunicorn"])
def test_every_flag_of_a_peer_is_known_or_explained_on_the_command_line(name):
    flags = {word for option in PEER[name].options for word in option.name.split() if word.startswith("-")}
    ours = {flag for entry in TABLE.values() for flag in spellings(entry)} | OWN | {"-c", "-h"}
    assert flags <= ours | set(ABSENT)


# --- against the real ones, where they are installed --------------------------------------------------------------


def installed(name):
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")


def flags_of_help(module):
    """Return the long flags that begin a line of --help, or follow one there."""
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
    heads = re.findall(r"^ {2}(-.*?)(?:  |$)", done.stdout, re.MULTILINE)
    return {flag for head in heads for flag in re.findall(r"--[a-z0-9-]+", head)}


def long_flags(peer):
    return {word for option in peer.options for word in option.name.split() if word.startswith("--")}


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=installed(each)) for each in ("uvicorn", "hypercorn", "granian")]
)
def test_every_flag_of_the_installed_release_is_on_the_page(name):
    assert flags_of_help(name) - long_flags(PEER[name]) == set()


@installed("gunicorn")
def test_every_setting_of_the_installed_gunicorn_is_on_the_page():
    from gunicorn.config import KNOWN_SETTINGS

    assert {each.name: tuple(each.cli or ()) for each in KNOWN_SETTINGS}.items() <= gunicorn.SETTINGS.items()


@installed("supervisor")
def test_every_option_of_a_program_of_the_installed_supervisor_is_on_the_page():
    from supervisor.options import ProcessConfig

    internal = {"name", "uid"}
    theirs = {*ProcessConfig.req_param_names, *ProcessConfig.optional_param_names} - internal
    assert theirs <= {option.name for option in PEER["supervisor"].options}


@installed("circus")
def test_every_option_of_a_watcher_and_a_socket_of_the_installed_circus_is_on_the_page():
    from circus.sockets import CircusSocket
    from circus.watcher import Watcher

    known = {option.name for option in PEER["circus"].options}
    watcher = inspect.signature(Watcher).parameters.keys() - {"name", "env", "loop", "options"}
    assert {each for each in watcher if not known & {each, f"{each}.*", f"{each.removesuffix('s')}_*"}} == set()
    sockets = {f"socket: {each}" for each in inspect.signature(CircusSocket).parameters} - {"socket: name"}
    assert sockets <= known
