"""Which files count under --reload: as with uvicorn."""

from __future__ import annotations

from pathlib import Path

import pytest

from procmgr.arbiter.patterns import directories_of, patterns_of
from procmgr.arbiter.watch import describe
from procmgr.config.development import DevelopmentSettings


@pytest.fixture
def tree(tmp_path):
    for name in ("app", "app/ext", "app/ext/lib", "web", ".git"):
        (tmp_path / name).mkdir()
    return tmp_path


def settings(**values):
    return DevelopmentSettings(**{f"reload_{name}": value for name, value in values.items()})


@pytest.mark.parametrize(
    ("path", "values", "counts"),
    [
        ("app/main.py", {}, True),
        ("app/page.html", {}, False),
        ("app/page.html", {"includes": ("*.html",)}, True),
        ("app/main.py", {"includes": ("*.html",)}, True),
        ("app/.hidden.py", {}, False),
        ("app/.hidden.py", {"includes": (".*",)}, True),
        ("app/main.pyc", {}, False),
        ("app/~main.py", {}, False),
        ("app/main.py", {"excludes": ("*.py",)}, False),
        ("app/test_main.py", {"excludes": ("test_*.py",)}, False),
        ("app/main.py", {"excludes": ("app/*",)}, False),
        ("app/ext/lib/deep.py", {"excludes": ("app/ext",)}, False),
        ("app/main.py", {"excludes": ("app/ext",)}, True),
        (".env", {"includes": (".env",)}, True),  # spelt out, it wins over the exclude .*
        ("app/.env", {"includes": ("*.env",)}, False),
    ],
)
def test_what_counts(tree, path, values, counts):
    assert patterns_of(settings(**values), tree).match(tree / path) is counts


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ["."]),
        ({"dirs": ("app",)}, ["app"]),
        ({"dirs": ("app", "app/ext", "web")}, ["app", "web"]),
        ({"dirs": ("app",), "includes": ("web",)}, ["app", "web"]),
        ({"includes": ("*.html",)}, ["."]),
        ({"includes": ("w*",)}, ["web"]),
        ({"includes": (".*",)}, ["."]),
        ({"includes": ("/nowhere/*",)}, ["."]),
        ({"dirs": ("app", "web"), "excludes": ("web",)}, ["app"]),
        ({"dirs": ("app/ext",), "excludes": ("app",)}, ["."]),
    ],
)
def test_where_it_is_looked_for(tree, values, expected):
    assert directories_of(settings(**values), tree) == tuple((tree / each).resolve() for each in expected)


def test_an_excluded_directory_counts_from_the_working_directory_and_by_any_spelling(tree):
    (tree / "link").symlink_to("web")
    assert not patterns_of(settings(excludes=("link",)), tree).match(tree / "web" / "page.py")


def test_a_change_is_described_in_one_bounded_line():
    cwd = Path("/srv")
    assert describe(["/srv/a.py", "/other/b.py"], cwd) == "a.py, /other/b.py"
    assert describe([f"/srv/{number}.py" for number in range(500)], cwd) == "0.py, 1.py, 2.py and 497 more"
    assert describe(["/srv/new\nline.py"], cwd) == "'new\\nline.py'"
    assert len(describe(["/srv/" + "x" * 5000] * 9, cwd)) < 1000
