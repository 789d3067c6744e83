"""docs/migrating.md: every option of the programs that people come from, and what it is here.

`python -m procmgr.config.migrating` prints the page; a test holds the file in the tree to it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from procmgr.config.peers import PEERS
from procmgr.config.reference import spellings
from procmgr.config.settings import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from procmgr.config.peers.model import Option, Peer, Trait

_HEAD: Final = """\
# Migrating

From {names}. Each part has a command or file
before and after, what behaves differently, and every option.

In the tables *none* is an option that procmgr does not have, and *stays* one that remains where it is. Any flag is also
a key of `procmgr.toml` and a variable, `--graceful-timeout` say `graceful_timeout` and `PROCMGR_GRACEFUL_TIMEOUT`; all
of them with their defaults are in [Settings](settings.md). `UVICORN_*`, `WEB_CONCURRENCY`, `FORWARDED_ALLOW_IPS` and
`PORT` are read, too. A flag that is known elsewhere and absent here is refused with what to use instead.
"""

_GUNICORN: Final = """
### gunicorn.conf.py

```sh
procmgr --from-gunicorn gunicorn.conf.py > procmgr.toml
procmgr -c procmgr.toml --check-config main:api
```

The file is a program: it is executed, in a process of its own and for at most ten seconds; gunicorn need not be
installed. What it computes is the result on this machine, the expression stands beside it. The settings that have no
equivalent are comments at the end, each with what to do instead; one line on standard error names them. What is on
gunicorn's command line or in `GUNICORN_CMD_ARGS` is not in the file, and so not in the result.
"""
_EXTRA: Final = {"gunicorn": _GUNICORN}


def page() -> str:
    """Return the page."""
    names = [peer.name for peer in PEERS]
    return _HEAD.format(names=f"{', '.join(names[:-1])} and {names[-1]}") + "".join(map(_part, PEERS))


def _part(peer: Peer) -> str:
    files = "".join(f"\n```{peer.language}\n{text}\n```\n" for text in (peer.before, peer.after))
    traits = _table((peer.name, "procmgr"), map(_trait, peer.traits), first="What differs")
    options = _table(("procmgr", "remark"), map(_option, peer.options), first=f"Option of {peer.name}")
    title = f"\n## {peer.name}\n\n{peer.name} {peer.release}\n"
    return f"{title}{files}{_EXTRA.get(peer.name, '')}\n{traits}\n{options}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, first: str) -> str:
    lines = [(first, *columns), ("---",) * (len(columns) + 1), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _trait(trait: Trait) -> tuple[str, str, str]:
    return trait.what, trait.theirs, trait.ours


def _option(option: Option) -> tuple[str, str, str]:
    names = ", ".join(f"`{name}`" for name in _split(option))
    flags = [_flag(each, option) for each in option.ours] or [f"`{option.own}`" if option.own else ""]
    ours = ", ".join(flags) or ("stays" if option.stays else "none")
    return names, ours, option.note or ("" if option.stays else "the same")


def _split(option: Option) -> list[str]:
    """Return the spellings of an option; one that says of what it is, as in `socket: host`, is one."""
    return [option.name] if ": " in option.name else option.name.split()


def _flag(name: str, option: Option) -> str:
    """Return how a setting is spelt on the command line: as in the other program, where procmgr takes that too."""
    if name == "app":
        return "the first argument"
    entry, names = TABLE[name], option.name.split()
    shared = [each for each in (entry.flag, *reversed(names)) if each in names and each in spellings(entry)]
    return f"`{[*shared, entry.flag][0]}`"


if __name__ == "__main__":
    sys.stdout.write(page())
