"""What is shown of dumped stacks: all threads, and of the main one no frame below the process's entry."""

from __future__ import annotations

import os

from procmgr.arbiter import dumps

WORKER = """Thread 0x00007f1 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 331 in wait

Current thread 0x00007f0 (most recent call first):
  File "/srv/shop/worker/boot.py", line 7 in until_end_of_month
  File "/srv/shop/main.py", line 3 in view
  File "/venv/procmgr/worker/boot.py", line 271 in <lambda>
  File "/venv/procmgr/worker/boot.py", line 139 in until_end
"""
ARBITER = """  File "/venv/procmgr/worker/boot.py", line 115 in boot
  File "/venv/procmgr/arbiter/spawn.py", line 45 in fork
  File "<frozen runpy>", line 88 in _run_code
"""


def test_the_frames_of_whoever_forked_are_left_out():
    assert dumps.own_frames(WORKER + ARBITER) == WORKER


def test_a_dump_without_such_frames_stays_as_it_is():
    assert dumps.own_frames(WORKER) == WORKER
    cut = WORKER[: WORKER.index("271")]
    assert dumps.own_frames(cut) == cut


def test_what_is_read_is_bounded_whatever_was_dumped():
    fd = os.memfd_create("stacks")
    try:
        os.write(fd, b"\xff" * 100_000)
        assert len(dumps.read(fd)) == 32 * 1024
    finally:
        os.close(fd)
