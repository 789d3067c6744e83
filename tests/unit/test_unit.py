"""Units for systemd: the file in the tree is what the program writes, and every word reaches procmgr unchanged."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from procmgr.cli import unit
from procmgr.cli.unit import for_application, quoted
from procmgr.config.resolve import Invocation, resolve

ROOT = Path(__file__).parents[2]


def printed(tmp_path, *arguments, environ=None, **values):
    invocation = Invocation(values={"app": "main:app", **values}, config=None, environ=environ or {}, cwd=tmp_path)
    return for_application(arguments, invocation, resolve(invocation))


def setting(text, name):
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{name}=")]


def test_the_template_in_the_tree_is_what_the_program_writes():
    """If not: python -m procmgr.cli.unit > systemd/procmgr@.service."""
    assert (ROOT / "systemd/procmgr@.service").read_text() == unit.template()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("main:app", "main:app"),
        ("", '""'),
        ("two words", '"two words"'),
        ("100%", "100%%"),
        ("$HOME", '"$$HOME"'),
        ('say "hi" \\', '"say \\"hi\\" \\\\"'),
        ("a\nb", '"a\\nb"'),
        ("it's", '"it\'s"'),
        (";", '";"'),
    ],
)
def test_a_word_is_quoted_as_systemd_reads_it(word, expected):
    assert quoted(word) == expected


def test_a_printed_unit_has_the_command_line_and_the_directory_of_the_start(tmp_path):
    text = printed(tmp_path, "-w", "2", "--env", "A=b c", "main:app")
    assert shlex.split(setting(text, "ExecStart")[0])[-5:] == ["-w", "2", "--env", "A=b c", "main:app"]
    assert setting(text, "WorkingDirectory") == [str(tmp_path)]
    assert setting(text, "RuntimeDirectory") == ["main"]
    assert setting(text, "ExecReload")[0].endswith("--socket %t/main/control.sock reload")


def test_a_worker_that_the_kernel_kills_for_memory_does_not_end_the_service(tmp_path):
    """By default (systemd.service(5)) it would: procmgr replaces the one worker, systemd would stop them all."""
    for text in (unit.template(), printed(tmp_path, "main:app")):
        assert setting(text, "OOMPolicy") == ["continue"]


def test_a_directory_is_no_command_line(tmp_path):
    text = printed(tmp_path / "a $b 5%", "main:app")
    assert setting(text, "WorkingDirectory") == [f"{tmp_path}/a $b 5%%"]


def test_a_reload_finds_the_control_socket_wherever_it_is(tmp_path):
    assert setting(printed(tmp_path, control="own.sock"), "ExecReload")[0].endswith(f"{tmp_path}/own.sock reload")
    switched_off = printed(tmp_path, "--control", "off", "main:app", control="off")
    assert setting(switched_off, "ExecStart")[0].endswith("--control %t/main/control.sock")
    assert setting(switched_off, "ExecReload")[0].endswith("%t/main/control.sock reload")


def test_variables_that_the_unit_does_not_have_are_named_without_their_values(tmp_path):
    text = printed(tmp_path, environ={"PROCMGR_ENV": "TOKEN=secret", "HOME": "/"})
    assert "PROCMGR_ENV" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("cwd", "app_dir", "protected", "hidden"),
    [
        ("/home/me/site", ".", "read-only", None),
        ("/root", ".", "read-only", None),
        ("/srv/site", "/home/me/site", "read-only", None),
        ("/srv/site", "src", "yes", None),
        ("/tmp", ".", "yes", "/tmp"),
        ("/srv/site", "/var/tmp/site", "yes", "/var/tmp/site"),
    ],
)
def test_what_the_application_is_in_stays_visible_or_is_said_not_to_be(monkeypatch, cwd, app_dir, protected, hidden):
    monkeypatch.setattr("sys.prefix", "/usr")
    invocation = Invocation(values={"app": "main:app"}, config=None, environ={}, cwd=Path(cwd))
    resolved = resolve(invocation)
    app = replace(resolved.settings.app, app_dir=app_dir)
    text = for_application((), invocation, replace(resolved, settings=replace(resolved.settings, app=app)))
    assert setting(text, "ProtectHome") == [protected]
    assert ("will not start" in text) is (hidden is not None)
    assert hidden is None or f"PrivateTmp= hides {hidden};" in text
