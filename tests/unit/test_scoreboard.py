"""The scoreboard's promises: one writer per row, sums that never fall, memory that nobody can take away."""

import os

import pytest

from procmgr import scoreboard
from procmgr.scoreboard import BEAT, LAYOUT, MAX_ROWS, REQUESTS, ROW_CELLS, Scoreboard


@pytest.fixture
def board():
    board = Scoreboard()
    yield board
    board.close()


def test_cells_have_distinct_places_within_a_row():
    indexes = [spec.index for spec in LAYOUT]
    assert indexes == list(range(len(LAYOUT)))
    assert len(indexes) <= ROW_CELLS
    assert len({spec.name for spec in LAYOUT}) == len(LAYOUT)


def test_rows_do_not_overlap(board):
    one, other = board.lease(), board.lease()
    for index in range(ROW_CELLS):
        board.row(one)[index] = 2**64 - 1
    assert list(board.row(other)) == [0] * ROW_CELLS


def test_a_child_writes_what_the_arbiter_reads(board):
    number = board.lease()
    pid = os.fork()
    if pid == 0:
        board.row(number)[BEAT] = 42
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.row(number)[BEAT] == 42


def test_counters_of_a_released_row_are_kept_in_the_totals_and_gauges_are_not(board):
    number = board.lease()
    board.row(number)[REQUESTS] = 7
    board.row(number)[scoreboard.ACTIVE] = 3
    board.release(number)
    assert board.totals[REQUESTS] == 7
    assert scoreboard.ACTIVE not in board.totals


def test_a_row_leased_again_starts_at_zero(board):
    number = board.lease()
    board.row(number)[REQUESTS] = 7
    board.release(number)
    assert board.lease() == number
    assert list(board.row(number)) == [0] * ROW_CELLS


def test_leasing_more_rows_than_there_are_is_refused(board):
    assert len({board.lease() for _ in range(MAX_ROWS)}) == MAX_ROWS
    with pytest.raises(RuntimeError, match="all 1024"):
        board.lease()


def test_nobody_can_shrink_the_memory_under_the_arbiter(board):
    with pytest.raises(PermissionError):
        os.ftruncate(board.fd, 0)


def test_an_existing_scoreboard_is_mapped_and_a_strange_one_refused(board):
    board.row(1)[REQUESTS] = 5
    again = Scoreboard(fd=os.dup(board.fd))
    assert again.row(1)[REQUESTS] == 5
    again.close()
    strange = os.memfd_create("strange")
    os.ftruncate(strange, os.fstat(board.fd).st_size)
    with pytest.raises(ValueError, match="not a scoreboard"):
        Scoreboard(fd=strange)
    os.close(strange)


def test_a_successor_leases_no_row_that_is_leased_and_goes_on_counting(board):
    written, other = board.lease(), board.lease()
    board.row(other)[REQUESTS] = 5
    board.release(other)
    board.row(written)[REQUESTS] = 7
    successor = Scoreboard.adopt(board.hand_over())
    assert successor.row(written)[REQUESTS] == 7
    assert written not in {successor.lease() for _ in range(MAX_ROWS - 1)}
    with pytest.raises(RuntimeError, match="all"):
        successor.lease()
    successor.release(written)
    assert successor.totals == {**board.totals, REQUESTS: 12}


def test_what_is_no_scoreboard_of_this_layout_is_not_taken_over(board):
    board.row(0)[1] = 99
    with pytest.raises(ValueError, match="layout"):
        Scoreboard.adopt(board.hand_over())


def test_what_runs_in_a_worker_is_read_with_its_age_oldest_first(board):
    number = board.lease()
    inflight = scoreboard.InFlight(board.records(number))
    first, second = (
        inflight.begin(b"GET /slow HTTP/1.1\r\nHost: h\r\n"),
        inflight.begin(b"POST /later?key=secret HTTP/1.1\r\n"),
    )
    running = scoreboard.running(board.records(number))
    assert [what for _, what in running] == ["GET /slow", "POST /later"]
    assert 0 < running[0][0] <= running[1][0]
    inflight.end(first)
    assert [what for _, what in scoreboard.running(board.records(number))] == ["POST /later"]
    inflight.end(second)
    assert scoreboard.running(board.records(number)) == []


def test_a_record_is_cut_and_what_a_worker_wrote_is_escaped(board):
    records = board.records(board.lease())
    inflight = scoreboard.InFlight(records)
    inflight.begin(b"GET /" + b"a" * 500)
    inflight.begin("GET /\x1b[2J\né'\\ HTTP/1.1\r\n".encode())
    texts = sorted(what for _, what in scoreboard.running(records))
    assert texts == ["GET /" + "\\x1b[2J\\n\\xc3\\xa9'\\\\", "GET /" + "a" * 115]
    records[:] = os.urandom(scoreboard.RECORDS_BYTES)
    assert all(what.isascii() and what.isprintable() for _, what in scoreboard.running(records))


def test_requests_beyond_the_records_are_not_recorded_and_do_no_harm(board):
    records = board.records(board.lease())
    inflight = scoreboard.InFlight(records)
    places = [inflight.begin(b"GET /") for _ in range(scoreboard.RECORDS + 3)]
    assert len(scoreboard.running(records)) == scoreboard.RECORDS
    for place in places:
        inflight.end(place)
    assert scoreboard.running(records) == []
    assert len({inflight.begin(b"GET /") for _ in range(scoreboard.RECORDS)}) == scoreboard.RECORDS


def test_records_of_two_rows_do_not_overlap_and_are_zeroed_with_their_row(board):
    one, other = board.lease(), board.lease()
    board.records(one)[:] = b"\xff" * scoreboard.RECORDS_BYTES
    assert bytes(board.records(other)) == bytes(scoreboard.RECORDS_BYTES)
    assert list(board.row(other)) == [0] * ROW_CELLS
    board.release(one)
    assert bytes(board.records(one)) == bytes(scoreboard.RECORDS_BYTES)
