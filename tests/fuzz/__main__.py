"""Feed both parsers what atheris makes up, guided by what it reaches, and stop at the first thing that is wrong.

`python -m fuzz [--seconds N]`, by `make fuzz`. An input is three bytes that say where it is cut and under which limits,
then what is on the wire. It begins with the corpus of the tests; what it learns, and what it finds, is kept in DIR.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("fuzz: atheris is not installed; it has wheels for Linux on x86-64 and some versions of Python")

with atheris.instrument_imports(include=["procmgr.worker.protocols", "procmgr.worker.cycle", "h11"]):
    from protocols.corpus import CASES, FRAGMENTS
    from support.unwired import compare, cut

    from procmgr.worker.protocols.context import Limits

NARROW = Limits(
    request_line=64, head=256, fields=6, chunk_framing=40, trailers=40, body_size=60, pipelined=100, discard=20
)
PREFIX = 3
LONGEST = 4096


def one_input(runner: asyncio.Runner, data: bytes) -> None:
    """Raise AssertionError if the two parsers or two cuts of the same bytes differ, or anything breaks."""
    if len(data) <= PREFIX:
        return
    raw = data[PREFIX:]
    limits = NARROW if data[0] & 1 else None
    places = [(byte * len(raw)) >> 8 for byte in data[:PREFIX]]
    runner.run(compare(raw, [[raw], cut(raw, places)], limits))


def prepare(room: Path) -> list[str]:
    """Write the first inputs and the dictionary; return libFuzzer's arguments for them."""
    seeds, learnt = room / "seeds", room / "learnt"
    for path in (seeds, learnt):
        path.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(CASES):
        if len(case.raw) <= LONGEST - PREFIX:
            for limits in (b"\x00", b"\x01"):
                (seeds / f"{number}-{limits[0]}").write_bytes(limits + b"\x55\xaa" + case.raw)
    words = ['"' + "".join(f"\\x{byte:02x}" for byte in fragment) + '"' for fragment in FRAGMENTS]
    (room / "words").write_text("\n".join(words) + "\n")
    return [f"-dict={room / 'words'}", str(learnt), str(seeds)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="how long (60)")
    parser.add_argument("--dir", type=Path, default=Path(".fuzz"), help="where inputs are kept (.fuzz)")
    parser.add_argument("--input", type=Path, help="try this input alone, as a finding was kept")
    options = parser.parse_args()
    # Many short examples in one loop: what they leave to the next turn would be the next example's.
    with asyncio.Runner() as runner:
        if options.input:
            one_input(runner, options.input.read_bytes())
            return
        arguments = [
            *(f"-max_total_time={options.seconds}", f"-max_len={LONGEST}", "-timeout=20", "-rss_limit_mb=2048"),
            *(f"-artifact_prefix={options.dir}/", "-print_final_stats=1", *prepare(options.dir)),
        ]
        atheris.Setup(["fuzz", *arguments], lambda data: one_input(runner, data))
        atheris.Fuzz()


main()
