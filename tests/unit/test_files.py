"""Parts of files: what may be sent, where it begins and ends, and when its descriptor is closed."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from procmgr.worker.protocols import files
from procmgr.worker.protocols.files import SMALL, FileCutError, FilePart, open_file, open_path


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return path


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def part_of(file, offset=None, count=None):
    part = open_file(None, file, offset, count)
    os.close(part.fd)
    return part.offset, part.left


@pytest.mark.parametrize(
    ("offset", "count", "part"),
    [(0, None, (0, 10)), (3, None, (3, 7)), (3, 4, (3, 4)), (10, None, (10, 0)), (12, None, (12, 0)), (12, 0, (12, 0))],
)
def test_a_part_is_what_offset_and_count_say(path, offset, count, part):
    with path.open("rb") as file:
        assert part_of(file, offset, count) == part_of(file.fileno(), offset, count) == part
        assert file.tell() == 0


@pytest.mark.parametrize(("offset", "count"), [(-1, None), (0, -1), (0, 11), (9, 2), (12, 1), (-5, 3)])
def test_a_part_that_is_not_in_the_file_is_refused_and_nothing_stays_open(path, offset, count):
    with path.open("rb") as file:
        lowest = os.dup(file.fileno())
        os.close(lowest)
        with pytest.raises(ValueError, match="in a file of 10"):
            open_file(None, file, offset, count)
        assert not is_open(lowest)


def test_parts_without_an_offset_follow_one_another(path):
    with path.open("rb") as file:
        assert [part_of(file, None, 4), part_of(file, None, 4), part_of(file)] == [(0, 4), (4, 4), (8, 2)]
        assert file.read() == b""


def test_a_duplicate_is_sent_so_the_file_may_be_closed(path):
    async def main():
        with path.open("rb") as file:
            part = open_file(asyncio.get_running_loop(), file, 2, 5)
        assert await part.read(3) + await part.read(100) == b"23456"
        assert part.left == 0
        part.close()
        assert not is_open(part.fd)

    asyncio.run(main())


def test_a_file_that_was_cut_is_said(path):
    async def main():
        part = FilePart(asyncio.get_running_loop(), os.open(path, os.O_RDONLY), 0, 20)
        assert await part.read(20) == b"0123456789"
        with pytest.raises(FileCutError, match="10 bytes short"):
            await part.read(20)
        part.close()

    asyncio.run(main())


def test_a_small_file_is_read_at_once_and_a_larger_one_is_kept_open(tmp_path):
    async def main():
        loop = asyncio.get_running_loop()
        for size in (0, 1, SMALL):
            (tmp_path / "file").write_bytes(bytes(size))
            assert await open_path(loop, str(tmp_path / "file")) == bytes(size)
        (tmp_path / "file").write_bytes(bytes(SMALL + 1))
        part = await open_path(loop, str(tmp_path / "file"))
        assert (part.offset, part.left, is_open(part.fd)) == (0, SMALL + 1, True)
        part.close()

    asyncio.run(main())


@pytest.mark.parametrize("fails", [False, True])
def test_a_descriptor_is_not_closed_while_a_thread_reads_it(path, monkeypatch, fails):
    async def main():
        entered, go_on = threading.Event(), threading.Event()

        def slow(fd, size, offset):
            entered.set()
            assert go_on.wait(10)
            assert is_open(fd)
            if fails:
                raise OSError("broken disk")
            return b""

        monkeypatch.setattr(files.os, "pread", slow)
        loop = asyncio.get_running_loop()
        seen = []
        loop.set_exception_handler(lambda _, context: seen.append(context))
        part = FilePart(loop, os.open(path, os.O_RDONLY), 0, 10)
        reading = asyncio.ensure_future(part.read(10))
        await asyncio.to_thread(entered.wait, 10)
        reading.cancel()
        await asyncio.wait([reading])
        part.close()
        assert is_open(part.fd)
        go_on.set()
        while is_open(part.fd):
            await asyncio.sleep(0)
        assert (reading.cancelled(), seen) == (True, [])

    asyncio.run(main())


@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_is_opened_too_late_is_closed(tmp_path, monkeypatch, there):
    async def main():
        entered, go_on = threading.Event(), threading.Event()
        original, opened = files._open, []

        def slow(path):
            entered.set()
            assert go_on.wait(10)
            opened.append(original(path))
            return opened[0]

        monkeypatch.setattr(files, "_open", slow)
        loop = asyncio.get_running_loop()
        seen = []
        loop.set_exception_handler(lambda _, context: seen.append(context))
        if there:
            (tmp_path / "file").write_bytes(bytes(SMALL + 1))
        opening = asyncio.ensure_future(open_path(loop, str(tmp_path / "file")))
        await asyncio.to_thread(entered.wait, 10)
        opening.cancel()
        await asyncio.wait([opening])
        go_on.set()
        await loop.shutdown_default_executor()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (opening.cancelled(), seen, len(opened)) == (True, [], there)
        if there:
            assert not is_open(opened[0][0])

    asyncio.run(main())
