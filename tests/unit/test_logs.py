"""Log lines: never blocking, never torn, never raising; uvicorn's look; the user's own configuration of logging."""

import errno
import fcntl
import io
import json
import logging
import os
import pty
import resource
import select
import signal
import socket
import sys
import threading
import tty
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from procmgr import logs
from procmgr.errors import ConfigError
from procmgr.logs import AccessFormatter, DefaultFormatter, GuardedHandler, LineWriter, parse_level, wants_colors

PIPE_BUF = select.PIPE_BUF


class Pipe:
    """A pipe with room for `size` bytes and a writer at its end."""

    def __init__(self, size=PIPE_BUF, limit=1 << 20):
        self.reader, self.fd = os.pipe()
        os.set_blocking(self.reader, False)
        fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, size)
        self.writer = LineWriter(self.fd, limit=limit)

    def read(self):
        """Return what is in the pipe now."""
        try:
            return os.read(self.reader, 1 << 20)
        except BlockingIOError:
            return b""

    def read_all(self):
        """Read and flush until the writer has nothing left."""
        text = self.read()
        while self.writer.pending:
            self.writer.flush()
            text += self.read()
        return text + self.read()

    def close_reader(self):
        os.close(self.reader)
        self.reader = None

    def close(self):
        for fd in (self.reader, self.fd):
            if fd is not None:
                os.close(fd)


@pytest.fixture
def pipe():
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def small():
    """A pipe whose writer buffers at most 10,000 bytes."""
    pipe = Pipe(limit=10_000)
    yield pipe
    pipe.close()


def line(number, length=100):
    return f"{number:06d} ".encode().ljust(length - 1, b".") + b"\n"


# The writer


def test_nothing_is_written_before_the_flush_and_everything_by_it(pipe):
    pipe.writer.write(b"one\n")
    pipe.writer.write(b"two\n")
    assert pipe.read() == b""
    assert pipe.writer.pending == 8
    assert pipe.writer.flush() is True
    assert pipe.read() == b"one\ntwo\n"
    assert pipe.writer.pending == 0


def test_a_missing_line_end_is_added(pipe):
    pipe.writer.write(b"one")
    pipe.writer.flush()
    assert pipe.read() == b"one\n"


def test_the_shared_description_stays_blocking(pipe):
    pipe.writer.write(b"one\n")
    pipe.writer.flush()
    assert os.get_blocking(pipe.fd)


def test_a_stalled_reader_neither_blocks_nor_loses_anything_within_the_bound(pipe):
    lines = [line(number) for number in range(1000)]
    for each in lines:
        pipe.writer.write(each)
        pipe.writer.flush()
    assert pipe.writer.flush() is False
    assert 0 < pipe.writer.pending < 100_000
    assert pipe.read_all() == b"".join(lines)
    assert pipe.writer.dropped == 0


def written_chunks(monkeypatch):
    """Record every write to a descriptor from here on."""
    chunks = []
    original = os.pwritev

    def pwritev(fd, buffers, offset, flags):
        count = original(fd, buffers, offset, flags)
        chunks.append(bytes(buffers[0])[:count])
        return count

    monkeypatch.setattr(os, "pwritev", pwritev)
    return chunks


def test_a_write_to_a_pipe_is_at_most_pipe_buf_and_ends_at_a_line_end(monkeypatch):
    pipe = Pipe(size=1 << 20)
    chunks = written_chunks(monkeypatch)
    pipe.writer.write(b"".join(line(number, 77) for number in range(1000)))
    pipe.writer.flush()
    assert b"".join(chunks) == pipe.read()
    assert len(chunks) > 10
    assert all(len(chunk) <= PIPE_BUF and chunk.endswith(b"\n") for chunk in chunks)
    pipe.close()


def test_a_line_longer_than_pipe_buf_is_cut_only_where_it_must_be(monkeypatch):
    pipe = Pipe(size=1 << 20)
    chunks = written_chunks(monkeypatch)
    pipe.writer.write(b"a\n" + b"x" * 5000 + b"\nb\n")
    pipe.writer.flush()
    assert [len(chunk) for chunk in chunks] == [2, PIPE_BUF, 5000 - PIPE_BUF + 1 + 2]
    assert pipe.read() == b"a\n" + b"x" * 5000 + b"\nb\n"
    pipe.close()


def test_beyond_the_bound_whole_lines_are_dropped_counted_and_reported_in_their_place(small):
    writer = small.writer
    for number in range(300):
        writer.write(line(number))
        writer.flush()
    assert writer.pending <= 10_000
    dropped = writer.dropped
    assert 10_000 <= (300 - dropped) * 100 <= 10_000 + PIPE_BUF
    text = small.read_all()
    writer.write(b"after\n")
    text += small.read_all()
    lines = text.splitlines(keepends=True)
    survivors = 300 - dropped
    assert lines[:survivors] == [line(number) for number in range(survivors)]
    assert lines[survivors:] == [b"procmgr dropped %d log lines\n" % dropped, b"after\n"]
    assert writer.dropped == dropped


def test_the_report_of_dropped_lines_precedes_lines_that_found_room_again(small):
    while not small.writer.dropped:
        small.writer.write(line(1))
    small.writer.flush()
    small.read()
    small.writer.flush()
    small.writer.write(b"found room\n")
    text = small.read_all()
    assert text.endswith(b"procmgr dropped 1 log lines\nfound room\n")
    assert text.count(b"dropped") == 1


def test_of_a_batch_that_fits_partly_the_lines_that_fit_are_kept(small):
    small.writer.write(b"".join(line(number) for number in range(41)))
    small.writer.flush()
    room = 10_000 - small.writer.pending
    small.writer.write(b"".join(line(number) for number in range(200)))
    assert small.writer.dropped == 200 - room // 100
    assert small.writer.pending <= 10_000


@pytest.mark.parametrize("length", [2, 10, 25, 100, 999])
def test_the_buffer_never_exceeds_its_bound_and_every_line_is_written_or_counted(small, length):
    text = b""
    for number in range(3000):
        small.writer.write(line(number, length))
        small.writer.flush()
        assert small.writer.pending <= 10_000
        if number % 40 == 0:
            text += small.read()
    text += small.read_all()
    reports = [int(each.split()[2]) for each in text.splitlines() if each.startswith(b"procmgr dropped")]
    written = text.count(b"\n") - len(reports)
    assert small.writer.dropped == sum(reports) == 3000 - written


def test_a_burst_larger_than_the_buffer_is_written_if_the_reader_takes_it():
    pipe = Pipe(size=1 << 20, limit=10_000)
    for number in range(500):
        pipe.writer.write(line(number))
    pipe.writer.flush()
    assert pipe.read() == b"".join(line(number) for number in range(500))
    assert pipe.writer.dropped == 0
    pipe.close()


def test_a_reader_that_is_gone_raises_nothing_and_its_lines_are_counted(pipe):
    pipe.close_reader()
    pipe.writer.write(b"one\ntwo\n")
    assert pipe.writer.flush() is False
    assert pipe.writer.dropped == 2
    assert pipe.writer.pending == 0


def test_a_closed_descriptor_raises_nothing():
    reader, fd = os.pipe()
    writer = LineWriter(fd)
    os.close(fd)
    os.close(reader)
    writer.write(b"one\n")
    assert writer.flush() is False
    assert (writer.dropped, writer.pending) == (1, 0)


def test_a_full_disk_raises_nothing_and_the_lines_wait_for_room(tmp_path):
    with Path("/dev/full").open("wb") as full, (tmp_path / "log").open("wb") as file:
        writer = LineWriter(full.fileno())
        writer.write(b"one\n")
        assert writer.flush() is False
        assert writer.pending == 4
        writer.reopen(file.fileno())
        assert writer.flush() is True
    assert (tmp_path / "log").read_bytes() == b"one\n"


def test_closing_on_a_full_disk_ends_at_once():
    with Path("/dev/full").open("wb") as full:
        writer = LineWriter(full.fileno())
        writer.write(b"one\n")
        writer.close(timeout=3600)
        assert (writer.dropped, writer.pending) == (1, 0)


def test_room_that_another_process_takes_between_poll_and_write_does_not_block(pipe):
    """The stale answer of poll(2) is simulated: the pipe is full when the write comes."""
    os.set_blocking(pipe.fd, False)
    while True:
        try:
            os.write(pipe.fd, b"x" * PIPE_BUF)
        except BlockingIOError:
            break
    os.set_blocking(pipe.fd, True)
    pipe.writer._poll = SimpleNamespace(poll=lambda timeout: [(pipe.fd, select.POLLOUT)])
    pipe.writer.write(b"one\n")
    assert pipe.writer.flush() is False
    assert pipe.writer.pending == 4


def test_where_the_kernel_lacks_rwf_nowait_poll_alone_guards(pipe, monkeypatch):
    def unknown(*args):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "pwritev", unknown)
    for number in range(100):
        pipe.writer.write(line(number))
        pipe.writer.flush()
    assert pipe.writer.pending > 0
    assert pipe.read_all() == b"".join(line(number) for number in range(100))


def test_lines_reach_a_terminal():
    controller, terminal = pty.openpty()
    tty.setraw(terminal)
    writer = LineWriter(terminal)
    writer.write(b"one\ntwo\n")
    assert writer.flush() is True
    assert os.read(controller, 100) == b"one\ntwo\n"
    os.close(terminal)
    os.close(controller)


def test_lines_reach_a_stream_socket_whose_reader_stalls():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        writer = LineWriter(ours.fileno(), limit=1 << 22)
        lines = b"".join(line(number) for number in range(20_000))
        writer.write(lines)
        assert writer.flush() is False
        text = b""
        while len(text) < len(lines):
            text += theirs.recv(1 << 20)
            writer.flush()
        assert text == lines


def test_a_regular_file_takes_large_writes(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        writer = LineWriter(file.fileno())
        writer.write(b"".join(line(number) for number in range(5000)))
        assert writer.flush() is True
    assert (tmp_path / "log").read_bytes() == b"".join(line(number) for number in range(5000))


def test_a_file_size_limit_raises_nothing(tmp_path):
    """EFBIG comes with SIGXFSZ, which CPython ignores."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
            with (tmp_path / "log").open("wb") as file:
                writer = LineWriter(file.fileno())
                writer.write(line(1))
                code = 0 if writer.flush() is False and writer.pending else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_child_forgets_what_its_parent_has_yet_to_write(pipe):
    pipe.writer.write(b"parent's\n")
    assert pipe.writer._lock.acquire()  # as if another thread of the parent was flushing when it forked
    pipe.writer.after_fork()
    pipe.writer.write(b"child's\n")
    assert pipe.writer.flush() is True
    assert pipe.read() == b"child's\n"


def test_after_reopening_lines_go_to_the_new_descriptor(pipe):
    other = Pipe()
    pipe.writer.write(b"one\n")
    pipe.writer.flush()
    pipe.writer.write(b"two\n")
    pipe.writer.reopen(other.fd)
    pipe.writer.flush()
    assert (pipe.read(), other.read()) == (b"one\n", b"two\n")
    assert pipe.writer.fileno() == other.fd
    other.close()


def test_closing_waits_for_a_reader_that_is_slow(pipe):
    lines = b"".join(line(number) for number in range(500))
    pipe.writer.write(lines)
    os.set_blocking(pipe.reader, True)
    received = []

    def read():
        while sum(map(len, received)) < len(lines):
            received.append(os.read(pipe.reader, 1000))

    thread = threading.Thread(target=read)
    thread.start()
    pipe.writer.close(timeout=30)
    thread.join()
    assert b"".join(received) == lines
    assert pipe.writer.dropped == 0


def test_closing_gives_up_on_a_reader_that_has_stalled(pipe):
    pipe.writer.write(b"".join(line(number) for number in range(100)))
    pipe.writer.close(timeout=0.01)
    assert pipe.writer.pending == 0
    assert pipe.writer.dropped == 100 - len(pipe.read()) // 100


def test_lines_of_many_threads_are_neither_lost_nor_torn_nor_doubled():
    pipe = Pipe(size=1 << 20, limit=1 << 22)

    def work(thread):
        for number in range(500):
            pipe.writer.write(b"%d:%d\n" % (thread, number))
            pipe.writer.flush()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert pipe.writer.pending == 0
    lines = pipe.read().splitlines()
    for thread in range(4):
        mine = [each for each in lines if each.startswith(b"%d:" % thread)]
        assert mine == [b"%d:%d" % (thread, number) for number in range(500)]
    assert len(lines) == 2000
    pipe.close()


def test_a_signal_handler_that_logs_in_the_midst_of_a_flush_does_not_deadlock(monkeypatch):
    pipe = Pipe(size=1 << 16)
    original = os.pwritev
    signals = []

    def interrupted(*args):
        if not signals:
            signals.append(1)
            signal.raise_signal(signal.SIGUSR1)
        return original(*args)

    def handler(signum, frame):
        pipe.writer.write(b"from the handler\n")
        pipe.writer.flush()

    previous = signal.signal(signal.SIGUSR1, handler)
    monkeypatch.setattr(os, "pwritev", interrupted)
    try:
        pipe.writer.write(b"outer\n")
        assert pipe.writer.flush() is True
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert pipe.read() == b"outer\nfrom the handler\n"
    pipe.close()


# The handler


def record(message="hello", *args, level=logging.INFO, **kwargs):
    return logging.LogRecord("procmgr.error", level, "file.py", 1, message, args, None, **kwargs)


def test_the_handler_writes_at_once_and_whatever_characters_there_are(pipe):
    handler = GuardedHandler(pipe.writer)
    handler.handle(record("caf\u00e9 %s", "\udcff"))
    assert pipe.read() == "café \\udcff\n".encode()


def test_a_record_that_cannot_be_formatted_harms_nobody(pipe, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = GuardedHandler(pipe.writer)
    handler.handle(record("%d", "x"))
    handler.handle(record("next"))
    assert pipe.read() == b"next\n"


def test_flushing_the_handler_flushes_the_writer(pipe):
    pipe.writer.write(b"one\n")
    GuardedHandler(pipe.writer).flush()
    assert pipe.read() == b"one\n"


# Levels and colours


@pytest.mark.parametrize(
    ("level", "number"),
    [("critical", 50), ("error", 40), ("warning", 30), ("INFO", 20), ("debug", 10), ("trace", 5), (17, 17)],
)
def test_a_level_is_a_name_or_a_number(level, number):
    assert parse_level(level) == number


def test_an_unknown_level_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"log level 'loud' is unknown; write one of critical, .*, trace"):
        parse_level("loud")


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    controller, terminal = pty.openpty()
    yield terminal
    os.close(controller)
    os.close(terminal)


def test_colours_are_for_terminals_only(terminal, pipe):
    assert wants_colors(terminal)
    assert not wants_colors(pipe.fd)
    assert not wants_colors(-1)


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_the_environment_silences_colours_unless_they_are_asked_for(terminal, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not wants_colors(terminal)
    assert wants_colors(terminal, use_colors=True)


def test_an_empty_no_color_says_nothing(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")
    assert wants_colors(terminal)


def test_colours_can_be_switched_off(terminal):
    assert not wants_colors(terminal, use_colors=False)


# Formatters


@pytest.mark.parametrize(
    ("level", "text"),
    [
        (logging.INFO, "INFO:     hello"),
        (logging.WARNING, "WARNING:  hello"),
        (logging.CRITICAL, "CRITICAL: hello"),
        (17, "Level 17: hello"),
    ],
)
def test_a_message_has_its_level_padded_in_front(level, text):
    assert DefaultFormatter(use_colors=False).format(record(level=level)) == text


def test_a_coloured_level_is_padded_by_what_is_seen():
    assert DefaultFormatter(use_colors=True).format(record()) == "\x1b[32mINFO\x1b[0m:     hello"
    assert DefaultFormatter(use_colors=True).format(record(level=17)) == "Level 17: hello"


def test_a_record_is_left_as_it_was_for_other_handlers():
    one = record()
    before = dict(vars(one))
    DefaultFormatter(use_colors=True).format(one)
    assert {key: value for key, value in vars(one).items() if key != "message"} == before


ACCESS = ('%s - "%s %s HTTP/%s" %d', "127.0.0.1:5000", "GET", "/a?b=%20", "1.1", 200)


def test_an_access_record_reads_as_uvicorn_s():
    text = AccessFormatter(use_colors=False).format(record(*ACCESS))
    assert text == 'INFO:     127.0.0.1:5000 - "GET /a?b=%20 HTTP/1.1" 200 OK'


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (101, "\x1b[97m101 Switching Protocols"),
        (204, "\x1b[32m204 No Content"),
        (302, "\x1b[33m302 Found"),
        (404, "\x1b[31m404 Not Found"),
        (500, "\x1b[91m500 Internal Server Error"),
        (299, "\x1b[32m299 "),
        (777, "777 "),
    ],
)
def test_the_status_has_its_phrase_and_the_colour_of_its_class(status, shown):
    formatter = AccessFormatter("%(status_code)s %(request_line)s", use_colors=True)
    text = formatter.format(record(*ACCESS[:-1], status))
    assert text.startswith(shown)
    assert text.endswith("\x1b[1mGET /a?b=%20 HTTP/1.1\x1b[0m")


def test_a_record_without_access_arguments_is_shown_all_the_same():
    assert AccessFormatter(use_colors=False).format(record("100%% %s", "x")) == 'INFO:     - - "100% x" -'


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_a_formatter_without_a_terminal_behind_the_stream_does_not_colour(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    assert not DefaultFormatter().use_colors


# Configuring


@pytest.fixture(autouse=True)
def pristine():
    """Leaves logging as it was."""
    names = ["procmgr", "procmgr.error", "procmgr.access", "uvicorn", "uvicorn.error", "uvicorn.access", None]
    loggers = [logging.getLogger(name) for name in names]
    state = [(each.handlers[:], each.level, each.propagate, each.filters[:], each.disabled) for each in loggers]
    yield
    for each, (handlers, level, propagate, filters, disabled) in zip(loggers, state, strict=True):
        for handler in each.handlers:
            if handler not in handlers:
                handler.close()
        each.handlers[:], each.propagate, each.filters[:], each.disabled = handlers, propagate, filters, disabled
        each.setLevel(level)


@pytest.fixture
def pipes():
    out, err = Pipe(size=1 << 16), Pipe(size=1 << 16)
    yield out, err
    out.close()
    err.close()


def configure(pipes, **options):
    out, err = pipes
    return logs.configure(stdout=out.fd, stderr=err.fd, **options)


def test_diagnostics_go_to_stderr_and_access_lines_to_stdout(pipes):
    setup = configure(pipes)
    logging.getLogger("procmgr.error").info("started")
    logging.getLogger("procmgr.error").debug("hidden")
    logging.getLogger("procmgr.access").info(*ACCESS)
    out, err = pipes
    assert err.read() == b"INFO:     started\n"
    assert out.read() == b'INFO:     127.0.0.1:5000 - "GET /a?b=%20 HTTP/1.1" 200 OK\n'
    assert setup.access.fileno() == out.fd
    assert setup.error_writer.fileno() == err.fd
    assert not setup.access_via_logging
    assert not setup.access_colors
    assert not logs.access_customised()


def test_configuring_again_replaces_rather_than_adds(pipes):
    configure(pipes)
    configure(pipes, level="debug")
    logging.getLogger("procmgr.error").debug("once")
    assert pipes[1].read() == b"DEBUG:    once\n"


def test_the_level_holds_for_both_loggers_and_can_be_changed(pipes):
    configure(pipes, level="error")
    logging.getLogger("procmgr.error").warning("hidden")
    logging.getLogger("procmgr.access").info(*ACCESS)
    assert (pipes[0].read(), pipes[1].read()) == (b"", b"")
    logs.set_level("trace")
    logging.getLogger("procmgr.error").log(5, "seen")
    assert pipes[1].read() == b"TRACE:    seen\n"


def test_without_an_access_log_there_is_no_writer_and_no_record_goes_anywhere(pipes):
    setup = configure(pipes, access=False)
    logging.getLogger("procmgr.access").info(*ACCESS)
    assert setup.access is None
    assert (pipes[0].read(), pipes[1].read()) == (b"", b"")


def test_colours_asked_for_are_in_the_lines_and_told_to_the_fast_path(pipes):
    assert configure(pipes, use_colors=True).access_colors
    logging.getLogger("procmgr.error").info("x")
    assert pipes[1].read() == b"\x1b[32mINFO\x1b[0m:     x\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda logger: logger.addHandler(logging.NullHandler()),
        lambda logger: logger.addFilter(lambda record: True),
        lambda logger: logger.handlers.clear(),
        lambda logger: setattr(logger, "propagate", True),
        lambda logger: setattr(logger, "disabled", True),
        lambda logger: logger.handlers[0].setFormatter(logging.Formatter()),
        lambda logger: logger.handlers[0].addFilter(lambda record: True),
        lambda logger: logger.handlers[0].setLevel("ERROR"),
    ],
)
def test_an_application_that_changes_the_access_logger_is_noticed(pipes, change):
    configure(pipes)
    change(logging.getLogger("procmgr.access"))
    assert logs.access_customised()


def test_the_writers_forget_together_in_a_child(pipes):
    setup = configure(pipes)
    setup.access.write(b"one\n")
    setup.error_writer.write(b"two\n")
    setup.after_fork()
    assert (setup.access.pending, setup.error_writer.pending) == (0, 0)


# The user's configuration


class Collect(logging.Handler):
    """Keeps what it formats."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(self.format(record))


UVICORN_STYLE = {
    "version": 1,
    "formatters": {
        "default": {"()": "uvicorn.logging.DefaultFormatter", "fmt": "%(levelprefix)s %(message)s"},
        "access": {"()": "uvicorn.logging.AccessFormatter"},
    },
    "handlers": {
        "default": {"formatter": "default", "class": "logging.StreamHandler", "stream": "ext://sys.stderr"},
        "access": {"formatter": "access", "class": "logging.StreamHandler", "stream": "ext://sys.stdout"},
    },
    "loggers": {
        "uvicorn": {"handlers": ["default"], "level": "INFO", "propagate": False},
        "uvicorn.error": {"level": "DEBUG"},
        "uvicorn.access": {"handlers": ["access"], "level": "INFO", "propagate": False},
    },
}


def log_both():
    logging.getLogger("procmgr.error").debug("started")
    logging.getLogger("procmgr.access").info(*ACCESS)


def test_uvicorn_s_own_configuration_works_for_procmgr(pipes, capsys):
    setup = configure(pipes, log_config=UVICORN_STYLE, use_colors=False)
    log_both()
    captured = capsys.readouterr()
    assert captured.err == "DEBUG:    started\n"
    assert captured.out == 'INFO:     127.0.0.1:5000 - "GET /a?b=%20 HTTP/1.1" 200 OK\n'
    assert setup.access_via_logging
    assert setup.access is not None


def test_colours_asked_for_reach_procmgr_s_formatters_in_a_configuration(pipes, capsys):
    configure(pipes, log_config=UVICORN_STYLE, use_colors=True)
    log_both()
    assert capsys.readouterr().err == "\x1b[36mDEBUG\x1b[0m:    started\n"


def test_the_caller_s_dict_is_left_as_it_was(pipes):
    before = json.dumps(UVICORN_STYLE)
    configure(pipes, log_config=UVICORN_STYLE, use_colors=True)
    assert json.dumps(UVICORN_STYLE) == before


def test_a_level_given_beside_a_configuration_wins_over_it(pipes, capsys):
    configure(pipes, log_config=UVICORN_STYLE, level="warning", use_colors=False)
    log_both()
    logging.getLogger("procmgr.error").warning("seen")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "WARNING:  seen\n")


def test_without_an_access_log_a_configured_access_logger_is_silent(pipes, capsys):
    setup = configure(pipes, log_config=UVICORN_STYLE, access=False)
    log_both()
    assert capsys.readouterr().out == ""
    assert setup.access is None


def collecting(*names, **extra):
    """Return a configuration in which each of `names` has a handler that collects."""
    handlers = {name: {"()": Collect} for name in names}
    loggers = {name: {"handlers": [name], "level": "DEBUG", "propagate": False} for name in names}
    return {"version": 1, "handlers": handlers, "loggers": loggers, **extra}


def collected(name):
    return [line for handler in logging.getLogger(name).handlers for line in handler.lines]


def test_loggers_of_procmgr_s_own_name_win_over_uvicorn_s(pipes):
    configure(pipes, log_config=collecting("procmgr.error", "uvicorn.error", "uvicorn.access"))
    log_both()
    assert collected("procmgr.error") == ["started"]
    assert collected("uvicorn.error") == []
    assert len(collected("uvicorn.access")) == 1


def test_a_configuration_of_the_root_alone_receives_procmgr_s_records(pipes):
    root = {"handlers": ["all"], "level": "DEBUG"}
    configure(pipes, log_config={"version": 1, "handlers": {"all": {"()": Collect}}, "root": root})
    log_both()
    lines = next(handler.lines for handler in logging.getLogger().handlers if isinstance(handler, Collect))
    assert lines == ["started", '127.0.0.1:5000 - "GET /a?b=%20 HTTP/1.1" 200']
    assert pipes[1].read() == b""


def test_a_filter_on_uvicorn_s_access_logger_holds_for_procmgr_s(pipes):
    config = collecting(
        "uvicorn.access", filters={"mute": {"()": lambda: lambda record: "/health" not in record.args[2]}}
    )
    config["loggers"]["uvicorn.access"]["filters"] = ["mute"]
    configure(pipes, log_config=config)
    access = logging.getLogger("procmgr.access")
    access.info(*ACCESS)
    access.info(*ACCESS[:3], "/health", "1.1", 200)
    assert len(collected("uvicorn.access")) == 1


def test_filters_of_an_earlier_configuration_do_not_stay(pipes):
    logging.getLogger("procmgr.error").addFilter(lambda record: False)
    configure(pipes)
    logging.getLogger("procmgr.error").info("x")
    assert pipes[1].read() == b"INFO:     x\n"


TOML = """
version = 1
[handlers.file]
class = "logging.FileHandler"
filename = "{file}"
[loggers."uvicorn.error"]
handlers = ["file"]
level = "DEBUG"
"""
INI = """
[loggers]
keys = root,error
[handlers]
keys = file
[formatters]
keys = plain
[logger_root]
handlers =
[logger_error]
qualname = uvicorn.error
handlers = file
level = DEBUG
[handler_file]
class = FileHandler
args = ("{file}",)
formatter = plain
[formatter_plain]
class = uvicorn.logging.DefaultFormatter
"""


@pytest.fixture
def written(tmp_path, pipes):
    """Writes a configuration file, applies it, logs, and returns what arrived in the log file it names."""

    def write(name, text):
        (tmp_path / name).write_text(text.replace("{file}", str(tmp_path / "app.log")))
        configure(pipes, log_config=str(tmp_path / name))
        log_both()
        return (tmp_path / "app.log").read_text()

    return write


def test_a_toml_file_is_a_dict_configuration(written):
    assert written("log.toml", TOML) == "started\n"


def test_a_json_file_is_a_dict_configuration(written):
    config = {
        "version": 1,
        "handlers": {"file": {"class": "logging.FileHandler", "filename": "{file}"}},
        "loggers": {"uvicorn.error": {"handlers": ["file"], "level": "DEBUG"}},
    }
    assert written("log.json", json.dumps(config)) == "started\n"


@pytest.mark.parametrize("name", ["log.ini", "log.conf"])
def test_any_other_file_is_an_ini_configuration(written, name):
    assert written(name, INI) == "DEBUG:    started\n"


def test_a_yaml_file_is_read_with_pyyaml(written, monkeypatch):
    """PyYAML is the user's to install; JSON is YAML."""
    yaml = ModuleType("yaml")
    yaml.safe_load, yaml.YAMLError = json.loads, ValueError
    monkeypatch.setitem(sys.modules, "yaml", yaml)
    config = {
        "version": 1,
        "handlers": {"file": {"class": "logging.FileHandler", "filename": "{file}"}},
        "loggers": {"procmgr.error": {"handlers": ["file"], "level": "DEBUG"}},
    }
    assert written("log.yaml", json.dumps(config)) == "started\n"


def test_without_pyyaml_a_yaml_file_is_refused_with_what_to_do(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match=r"log\.yml: reading YAML needs PyYAML; install it"):
        written("log.yml", "version: 1")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("log.json", "{", "Expecting property name"),
        ("log.json", "[1]", "holds no table"),
        ("log.json", "{}", "version"),
        ("log.json", "\xff", "Expecting value"),
        ("log.toml", "a =", "Invalid value"),
        ("log.json", '{"version": 1, "handlers": {"x": {"class": "no.such.Handler"}}}', "handler 'x': .*no"),
        ("log.json", '{"version": 1, "formatters": 5}', "'int' object"),
        ("log.json", '{"version": 1, "formatters": {"x": 5}}', "'int' object"),
        (
            "log.json",
            '{"version": 1, "handlers": {"x": {"class": "logging.FileHandler", "filename": "/no/x"}}}',
            "No such file",
        ),
        ("log.ini", "nonsense", "no section headers"),
        ("log.ini", "[loggers]\nkeys=root\n", "there is no '(handlers|formatters|logger_root)'$"),
        ("log.yaml", "a: [", r"expected the node content, but found '<stream end>'[^<]*<byte string>[^<]*$"),
    ],
)
def test_a_wrong_configuration_is_one_line_that_names_the_file(written, tmp_path, name, text, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        written(name, text)
    assert f"log_config {tmp_path / name}: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_configuration_is_one_line(tmp_path, pipes):
    with pytest.raises(ConfigError, match=r"log_config .*missing\.json: No such file or directory$"):
        configure(pipes, log_config=tmp_path / "missing.json")


# Reopening


@pytest.fixture
def file_handler(tmp_path):
    handler = logging.FileHandler(tmp_path / "app.log", mode="w")
    logger = logging.getLogger("procmgr.error")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield handler
    handler.close()


def test_a_renamed_log_file_is_opened_anew_by_its_path(tmp_path, file_handler):
    logger = logging.getLogger("procmgr.error")
    logger.info("old")
    (tmp_path / "app.log").rename(tmp_path / "app.log.1")
    logs.reopen_files()
    logger.info("new")
    assert (tmp_path / "app.log.1").read_text() == "old\n"
    assert (tmp_path / "app.log").read_text() == "new\n"


def test_a_log_file_that_was_not_renamed_loses_nothing(tmp_path, file_handler):
    logger = logging.getLogger("procmgr.error")
    logger.info("old")
    logs.reopen_files()
    logger.info("new")
    assert (tmp_path / "app.log").read_text() == "old\nnew\n"


def test_a_log_file_that_cannot_be_opened_again_stays_open_and_the_log_says_so(tmp_path, file_handler):
    logger = logging.getLogger("procmgr.error")
    file_handler.baseFilename = str(tmp_path / "missing" / "app.log")
    logs.reopen_files()
    logger.info("still here")
    assert "keeping the old\nstill here\n" in (tmp_path / "app.log").read_text()


def test_a_log_file_not_opened_yet_is_left_for_its_first_record(tmp_path):
    handler = logging.FileHandler(tmp_path / "later.log", delay=True)
    logging.getLogger("procmgr.error").addHandler(handler)
    logs.reopen_files()
    assert not (tmp_path / "later.log").exists()
