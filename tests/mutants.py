"""Mutation testing of `procmgr/arbiter/core`: break one thing at a time and see that a fast, pure test notices.

Theory of operation. A *mutant* is one module of the core with one node of its syntax tree changed (`OPERATORS`). The
runner imports pytest and Hypothesis once and forks for each mutant; the child's import system serves the changed tree
in place of the module and runs the tests, fastest first, until one fails. No file is touched, so it works on the tree
as it stands. A mutant that outlives its time is killed, as endless loops are.

A mutant that no test can tell from the original is *equivalent*: `tests/mutants.toml` names those, each with the
reason, and they are left out of the score. One named there that is killed after all, or is no more, is an error.

    nice -n 19 python tests/mutants.py --jobs 2 [--sample 100 --seed 1] [--only clock] [--minutes 30]
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORE = ROOT / "procmgr" / "arbiter" / "core"
PACKAGE = "procmgr.arbiter.core"
UNIT = [str(path) for path in sorted((ROOT / "tests" / "unit").glob("test_pool_*.py")) if "laws" not in path.name]
TESTS = [
    *UNIT,
    str(ROOT / "tests/unit/test_horizon.py"),
    str(ROOT / "tests/sim/test_pool_converges.py"),
    str(ROOT / "tests/unit/test_pool_laws.py"),
]
OPTIONS = [
    "-x",
    "-q",
    "--assert=plain",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "--hypothesis-profile=mutants",
    f"--rootdir={ROOT}",
]

BOUNDARY = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
NEGATION = {ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
NEGATION |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
TWINS = {"min": "max", "max": "min", "any": "all", "all": "any"}
SKIPPED = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def constant(value):
    return ast.Constant(value)


def replaced(node, **fields):
    """A copy of `node` with other fields."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def without(items, index):
    return [*items[:index], *items[index + 1 :]]


def expressions(node):
    """What may stand in place of an expression."""
    match node:
        case ast.Compare(ops=[op]):
            for table in (BOUNDARY, NEGATION):
                if type(op) in table:
                    yield replaced(node, ops=[table[type(op)]()])
        case ast.Compare(ops=[first, second]):
            yield replaced(node, ops=[BOUNDARY[type(first)](), second])
            yield replaced(node, ops=[first, BOUNDARY[type(second)]()])
        case ast.BoolOp(op=op, values=values):
            yield replaced(node, op=ast.And() if isinstance(op, ast.Or) else ast.Or())
            yield from (
                values[1 - i] if len(values) == 2 else replaced(node, values=without(values, i))
                for i in range(len(values))
            )
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            yield replaced(node, op=ARITHMETIC[type(op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield constant(value + 1)
        case ast.IfExp(body=body, orelse=orelse):
            yield body
            yield orelse
        case ast.Call(func=ast.Name(id=name)) if name in TWINS:
            yield replaced(node, func=ast.Name(TWINS[name], ast.Load()))
        case ast.Set(elts=items) | ast.List(elts=items) if len(items) > 1:
            yield from (replaced(node, elts=without(items, i)) for i in range(len(items)))
        case ast.Dict(keys=keys, values=values) if None not in keys:
            yield from (replaced(node, keys=without(keys, i), values=without(values, i)) for i in range(len(keys)))


def statements(node):
    """What may stand in place of a statement."""
    match node:
        case ast.If(test=test) if ast.unparse(test) != "TYPE_CHECKING":
            yield replaced(node, test=constant(value=True))
            yield replaced(node, test=constant(value=False))
        case ast.While() | ast.For():
            yield ast.Pass()
        case ast.Expr(value=ast.Constant() | ast.Call(func=ast.Name(id="assert_never"))):
            return  # words, and what is never reached
        case ast.Expr() | ast.Assign() | ast.AugAssign() | ast.Delete() | ast.Raise():
            yield ast.Pass()
        case ast.Return(value=value) if value is not None and not isinstance(value, ast.Constant):
            yield replaced(node, value=constant(value=None))


def comprehension(node):
    """A comprehension without its filter."""
    if node.ifs:
        yield replaced(node, ifs=[])


@dataclass(frozen=True)
class Mutant:
    """One change: `where` and `what` name it whatever the line, `nth` tells apart those of equal name.

    It shares the module's tree with all others, so `apply` is for the forked child alone.
    """

    module: str
    where: str
    what: str
    line: int
    nth: int
    tree: ast.Module
    parent: ast.AST
    field: str
    index: int | None
    new: ast.AST

    @property
    def name(self):
        return f"{self.module}.{self.where}: {self.what}" + (f" #{self.nth}" if self.nth else "")

    def apply(self):
        """The module's tree, changed."""
        if self.index is None:
            setattr(self.parent, self.field, self.new)
        else:
            getattr(self.parent, self.field)[self.index] = self.new
        return ast.fix_missing_locations(self.tree)


def places(node, where=""):
    """Every (where, parent, field, index, child) below `node` that is code: annotations and bare strings are not."""
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns", "decorator_list", "bases", "type_params"}:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST):
                continue
            name = getattr(child, "name", None) if isinstance(child, ast.FunctionDef | ast.ClassDef) else None
            inner = f"{where}.{name}".lstrip(".") if name else where
            if not isinstance(child, SKIPPED):
                yield inner, node, field, index, child
            if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
                yield from places(child, inner)


def shorten(node):
    return " ".join(ast.unparse(node).split())[:100]


def describe(old, new):
    if isinstance(new, ast.Pass):
        return f"without `{shorten(old)}`"
    if isinstance(new, ast.If):
        return f"`if {shorten(old.test)}` -> `if {shorten(new.test)}`"
    return f"`{shorten(old)}` -> `{shorten(new)}`"


def mutants_of(module):
    """Every mutant of one module, in the order of its lines."""
    tree = ast.parse((CORE / f"{module}.py").read_text(encoding="utf-8"))
    seen = Counter()
    for where, parent, field, index, child in list(places(tree)):
        kind = (
            comprehension
            if isinstance(child, ast.comprehension)
            else statements
            if isinstance(child, ast.stmt)
            else expressions
        )
        for new in list(kind(child)):
            what = describe(child, new)
            seen[where, what] += 1
            line = getattr(child, "lineno", getattr(parent, "lineno", 0))
            nth = seen[where, what] - 1
            yield Mutant(module, where or "module", what, line, nth, tree, parent, field, index, new)


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves the mutant in place of its module."""

    def __init__(self, mutant):
        self.mutant = mutant
        self.name = f"{PACKAGE}.{mutant.module}"

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        return importlib.util.spec_from_loader(name, self, origin=str(CORE / f"{self.mutant.module}.py"))

    def exec_module(self, module):
        exec(compile(self.mutant.apply(), module.__spec__.origin, "exec"), module.__dict__)


def run_tests(mutant):
    """In a forked child: the exit status of pytest, 0 if every test passed."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if mutant:
        sys.meta_path.insert(0, Changed(mutant))
    import pytest

    try:
        status = int(pytest.main([*OPTIONS, *TESTS]))
    except BaseException:  # noqa: BLE001 - whatever a mutant raises, it was noticed
        status = 3
    os._exit(status)


class Runner:
    """At most `jobs` children at a time, each for at most `limit` seconds."""

    def __init__(self, jobs, limit):
        self.jobs, self.limit = jobs, limit
        self.running = {}

    def start(self, mutant):
        pid = os.fork()
        if pid == 0:
            run_tests(mutant)
        self.running[pid] = mutant, time.monotonic()

    def wait(self):
        """Wait for one to end; returns it and whether it survived."""
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                mutant, _ = self.running.pop(pid)
                return mutant, status == 0
            for each, (_, since) in self.running.items():
                if time.monotonic() - since > self.limit:
                    os.kill(each, signal.SIGKILL)
            time.sleep(0.02)


def baseline():
    """Seconds that the tests take on the unchanged core; they must pass."""
    runner = Runner(1, 600.0)
    begin = time.monotonic()
    runner.start(None)
    _, passed = runner.wait()
    if not passed:
        sys.exit(f"the tests fail without any mutant: pytest {' '.join([*OPTIONS, *TESTS])}")
    return time.monotonic() - begin


def report(survivors, judged, done, total, killed):
    stale = {name for name in judged if name not in {m.name for m in done}}
    wrong = sorted(
        name for name in judged if name in {m.name for m in done} and name not in {m.name for m in survivors}
    )
    equivalent = [m for m in survivors if m.name in judged]
    gaps = [m for m in survivors if m.name not in judged]
    for mutant in sorted(gaps, key=lambda m: (m.module, m.line)):
        print(f"SURVIVED {mutant.module}.py:{mutant.line} {mutant.name}")
    for name in wrong:
        print(f"judged equivalent, but killed: {name}")
    if len(done) == total:
        for name in sorted(stale):
            print(f"judged equivalent, but no such mutant: {name}")
    counted = len(done) - len(equivalent)
    score = 100 * killed / counted if counted else 100.0
    print(
        f"{len(done)} of {total} mutants: {killed} killed, {len(gaps)} survived, "
        f"{len(equivalent)} equivalent; {score:.1f} %"
    )
    return score, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sample", type=int, help="so many, chosen by --seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", help="a module of the core, or the name of a mutant")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no other after so long")
    parser.add_argument("--bar", type=float, default=90.0, help="exit 1 below this score, per cent")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.chdir(ROOT)
    judged = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8"))["equivalent"]
    modules = sorted(path.stem for path in CORE.glob("*.py") if path.stem != "__init__")
    every = [mutant for module in modules for mutant in mutants_of(module)]
    todo = [m for m in every if not options.only or {m.module, m.name} & set(options.only)]
    random.Random(options.seed).shuffle(todo)
    todo = todo[: options.sample]
    import hypothesis.stateful  # noqa: F401 - once, for every child
    import pytest  # noqa: F401

    gc.collect()
    gc.freeze()
    seconds = baseline()
    print(f"{len(todo)} of {len(every)} mutants; the tests take {seconds:.1f} s", flush=True)
    runner, survivors, done = Runner(options.jobs, 3 * seconds + 10), [], []
    end = time.monotonic() + 60 * options.minutes
    while todo or runner.running:
        while todo and len(runner.running) < runner.jobs and time.monotonic() < end:
            runner.start(todo.pop())
        if not runner.running:
            break
        mutant, survived = runner.wait()
        done.append(mutant)
        if survived:
            survivors.append(mutant)
            if mutant.name not in judged:
                print(f"  {len(done)}: {mutant.module}.py:{mutant.line} {mutant.name}", flush=True)
    score, wrong = report(survivors, judged, done, len(every), len(done) - len(survivors))
    sys.exit(score < options.bar or bool(wrong))


if __name__ == "__main__":
    main()
