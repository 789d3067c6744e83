"""Autobahn's fuzzing client against the real daemon: no case may fail, through either library.

Its groups 9, 12 and 13 send thousands of messages of up to 16 MiB, plain and compressed. A few of each are in every
run, since they take long; all of them with `make autobahn`.
"""

from __future__ import annotations

import asyncio
import os

import kosoku
import pytest

# The case files leave theirs open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ALL = bool(os.environ.get("AUTOBAHN"))
LONG = ["9.*", "12.*", "13.*"]
SOME = ["9.1.1", "9.2.2", "9.3.1", "9.5.4", "9.7.1", "12.1.1", "12.2.4", "12.4.1", "13.3.3", "13.4.1", "13.7.2"]
SHORT = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]


def failures(url, cases):
    """Run the cases and return those that failed, and how many were run."""

    async def run():
        try:
            return await kosoku.run_fuzzingclient(url, cases=cases, concurrency=2)
        except kosoku.FailureError as error:
            return error.results

    results = asyncio.run(run())
    failed = [(each.case_id, each.result, each.result_close) for each in results if not each.passed]
    return failed, len(results)


@pytest.mark.parametrize("ws", ["websockets", "wsproto"])
@pytest.mark.parametrize(
    ("cases", "number"), [(SHORT, 247), (LONG, 270) if ALL else (SOME, len(SOME))], ids=["short", "long"]
)
def test_no_case_fails(serve, ws, cases, number):
    # The fuzzer takes a ping of the server's for an event of the case, and ends it.
    daemon = serve("--ws", ws, "--ws-ping-interval", "0", "--no-access-log", app="support.apps.websocket_app:autobahn")
    assert failures(f"ws://127.0.0.1:{daemon.port}/", cases) == ([], number)
