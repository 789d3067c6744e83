"""Diagnostics in systemd's journal: one entry per record with its fields, and standard error where that fails."""

import logging
import os
import socket
import struct

import pytest

from procmgr import logs
from procmgr.arbiter.core import actions
from procmgr.arbiter.core.actions import ReloadOutcome
from procmgr.arbiter.core.events import Exit
from procmgr.arbiter.report import fields_of
from procmgr.logs.journal import JournalHandler, entry, journal_reads, priority
from procmgr.logs.writer import LineWriter


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """The journal's end, bound by a short path."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind("journal")
        yield sock


@pytest.fixture
def stderr():
    """A pipe in place of standard error: the reading end, the writing end."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def log(journal, stderr):
    logger = logging.getLogger("procmgr.test_journal")
    logger.propagate = False
    logger.setLevel(logs.TRACE)
    handler = JournalHandler(LineWriter(stderr[1]), path="journal")
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)
    handler.close()


def received(journal):
    """Return the fields of the next entry."""
    data, fields = journal.recv(1 << 20), {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = struct.unpack("<Q", rest[:8])[0]
            value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
        fields[name.decode()], data = value.decode(), rest
    return fields


def test_a_record_is_an_entry_with_its_priority_and_place(journal, log):
    log.warning("worker %d is late", 3)
    fields = received(journal)
    assert fields["MESSAGE"] == "worker 3 is late"
    assert fields["PRIORITY"] == "4"
    assert fields["LOGGER"] == "procmgr.test_journal"
    assert fields["CODE_FILE"] == __file__
    assert fields["SYSLOG_IDENTIFIER"] == "procmgr"


def test_a_traceback_is_part_of_its_entry(journal, log):
    try:
        raise LookupError("no such table")
    except LookupError:
        log.exception("it failed")
    message = received(journal)["MESSAGE"]
    assert message.startswith("it failed\nTraceback")
    assert message.endswith("LookupError: no such table")
    with pytest.raises(BlockingIOError):
        journal.recv(1)


def test_identity_and_occasion_are_fields(journal, log):
    handler = log.handlers[0]
    handler.identify({"slot": 2, "generation": 7, "worker_id": None})
    with handler.about({"event": "worker_ready"}):
        log.info("ready")
    within, after = received(journal), None
    log.info("idle")
    after = received(journal)
    assert {name for name in within if name.startswith("PROCMGR_")} == {
        "PROCMGR_SLOT",
        "PROCMGR_GENERATION",
        "PROCMGR_EVENT",
    }
    assert within["PROCMGR_EVENT"] == "worker_ready"
    assert (after["PROCMGR_SLOT"], after.get("PROCMGR_EVENT")) == ("2", None)


def test_nothing_in_a_value_can_forge_a_field():
    assert entry({"MESSAGE": "a\nPRIORITY=0"}) == b"MESSAGE\n" + struct.pack("<Q", 12) + b"a\nPRIORITY=0\n"


@pytest.mark.parametrize(
    ("level", "number"),
    [("critical", 2), ("error", 3), ("warning", 4), ("info", 6), ("debug", 7), ("trace", 7)],
)
def test_levels_are_priorities_of_syslog(level, number):
    assert priority(logging.getLevelName(level.upper()) if level != "trace" else logs.TRACE) == number


def test_without_the_journals_socket_every_line_goes_to_standard_error_with_its_priority(journal, log, stderr):
    journal.close()
    log.error("it failed\nbecause")
    assert os.read(stderr[0], 100) == b"<3>it failed\n<3>because\n"


def test_what_a_full_queue_does_not_take_goes_to_standard_error(journal, log, stderr):
    os.set_blocking(stderr[0], False)
    for number in range(10_000):
        log.info("line %d", number)
        try:
            assert os.read(stderr[0], 100) == b"<6>line %d\n" % number
        except BlockingIOError:
            continue
        break
    else:
        pytest.fail("the queue has no end")
    assert received(journal)["MESSAGE"] == "line 0"


@pytest.mark.parametrize("changed", [{}, {"JOURNAL_STREAM": "1:2"}, {"JOURNAL_STREAM": "nonsense"}])
def test_only_the_descriptor_that_journal_stream_names_leads_to_the_journal(changed, stderr):
    status = os.fstat(stderr[1])
    assert journal_reads(stderr[1], {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    assert not journal_reads(stderr[1], changed)
    assert not journal_reads(9999, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})


def test_configure_takes_the_journal_where_it_reads_standard_error(stderr, monkeypatch):
    status = os.fstat(stderr[1])
    assert logs.configure(stderr=stderr[1]).journal is None
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    setup = logs.configure(stderr=stderr[1])
    assert setup.journal is not None
    assert logging.getLogger(logs.ERROR_LOGGER).handlers == [setup.journal]
    monkeypatch.delenv("JOURNAL_STREAM")
    logs.configure()


def test_a_notice_is_an_event_with_whom_it_is_about():
    died = actions.WorkerDied(4, 1, 2, Exit(code=0), 1.0, True, True, None, None)
    assert fields_of(died, {}) == {"event": "worker_died", "worker_id": 4, "slot": 1, "generation": 2}
    ended = actions.ReloadEnded(3, ReloadOutcome.ROLLED_BACK, 0, 2, None)
    assert fields_of(ended, {}) == {"event": "reload_ended", "generation": 3, "outcome": "rolled back"}
