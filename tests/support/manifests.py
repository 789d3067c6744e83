"""The files in etc/ for containers, read as what will read them does, as far as that can be had without it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hcl2
import yaml

from support.daemon import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ETC = ROOT / "etc"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile: its name, and all that follows it."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The exec form's words; raises `ValueError` for the shell form."""
        return json.loads(self.text)


def dockerfile() -> list[Instruction]:
    """Return the instructions of etc/Dockerfile: comments dropped, lines that end in a backslash joined."""
    lines = [line for line in (ETC / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    parts = (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    return [Instruction(name, text.strip()) for name, _, text in parts]


def last(name: str) -> Instruction:
    """Return the instruction of that name that holds for the image."""
    return [each for each in dockerfile() if each.name == name][-1]


def command(args: Sequence[str] | None, ports: Mapping[int, int]) -> list[str]:
    """Return what a container of the image runs, after the program's name: `args`, or else CMD, behind ENTRYPOINT.

    0.0.0.0 and the `ports` are replaced by what a test may listen on.
    """
    program, *first = last("ENTRYPOINT").words
    assert program == "procmgr"
    words = [*first, *(last("CMD").words if args is None else args)]
    for inner, outer in ports.items():
        words = [word.replace(f"0.0.0.0:{inner}", f"127.0.0.1:{outer}") for word in words]
    assert not any("0.0.0.0" in word for word in words)
    return words


def kubernetes() -> dict[str, dict[str, Any]]:
    """Return the objects in etc/kubernetes by their kind."""
    found = [each for path in sorted((ETC / "kubernetes").iterdir()) for each in yaml.safe_load_all(path.read_text())]
    return {each["kind"]: each for each in found}


def compose() -> dict[str, Any]:
    """Return the one service of etc/compose.yaml."""
    return yaml.safe_load((ETC / "compose.yaml").read_text())["services"]["api"]


def nomad() -> dict[str, Any]:
    """Return the group of the one job of etc/nomad.hcl."""
    options = hcl2.SerializationOptions(strip_string_quotes=True, explicit_blocks=False)
    document = hcl2.loads((ETC / "nomad.hcl").read_text(), serialization_options=options)
    return document["job"][0]["api"]["group"][0]["api"]


def seconds(text: str) -> float:
    """Return how long a duration of Compose and Nomad is; those here are in seconds or minutes."""
    units = {"s": 1, "m": 60}
    return float(text[:-1]) * units[text[-1]]
