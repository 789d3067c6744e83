"""Signals: the queue that outlives its program, and the ladder of stops."""

import os
import signal

import pytest

from procmgr.arbiter.core.events import StopLevel
from procmgr.arbiter.signals import HANDLED, SignalQueue, StopLadder

TERM, INT, QUIT = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT
GRACEFUL, QUICK, KILL = StopLevel.GRACEFUL, StopLevel.QUICK, StopLevel.KILL


@pytest.mark.parametrize(
    ("signals", "levels"),
    [
        ([(TERM, 0)], [GRACEFUL]),
        ([(INT, 0)], [QUICK]),
        ([(QUIT, 0)], [QUICK]),
        ([(TERM, 0), (TERM, 1), (TERM, 2)], [GRACEFUL, QUICK, KILL]),
        ([(TERM, 0), (INT, 0.1), (TERM, 1)], [GRACEFUL, QUICK, KILL]),
        ([(INT, 0), (INT, 1)], [QUICK, KILL]),
        ([(INT, 0), (INT, 0.4), (INT, 0.8), (INT, 2)], [QUICK, None, None, KILL]),
        ([(TERM, 0), (TERM, 0.4)], [GRACEFUL, None]),
        ([(TERM, 0), (QUIT, 1), (QUIT, 2)], [GRACEFUL, QUICK, QUICK]),
        ([(INT, 0), (TERM, 0.1), (TERM, 5)], [QUICK, KILL, KILL]),
    ],
)
def test_each_further_term_or_int_climbs_one_level_and_echoes_count_once(signals, levels):
    ladder = StopLadder()
    assert [ladder.climb(signum, now) for signum, now in signals] == levels


@pytest.fixture
def handlers():
    """Whatever handlers and wakeup descriptor a test sets are replaced by those of before."""
    before = {signum: signal.getsignal(signum) for signum in HANDLED}
    wakeup = signal.set_wakeup_fd(-1)
    yield
    signal.set_wakeup_fd(wakeup)
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_a_successor_reads_what_was_delivered_before_it_came_and_after(handlers):
    first = SignalQueue()
    os.kill(os.getpid(), signal.SIGHUP)
    successor = SignalQueue(first.hand_over())
    os.kill(os.getpid(), signal.SIGUSR1)
    assert successor.read() == [signal.SIGHUP, signal.SIGUSR1]
    successor.close()
