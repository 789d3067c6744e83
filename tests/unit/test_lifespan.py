"""The lifespan protocol: what an application may answer, fail to answer, and never do to the process."""

from __future__ import annotations

import asyncio
import logging

import pytest

from procmgr.errors import AppError
from procmgr.worker.lifespan import Lifespan

log = logging.getLogger("procmgr.error")


def cycle(app, mode="auto", state=None, between=None):
    """Start and stop `app`; return (startup error, shutdown error)."""

    async def run():
        lifespan = Lifespan(app=app, mode=mode, state={} if state is None else state, log=log)
        try:
            await lifespan.startup()
        except AppError as error:
            return error, None
        if between is not None:
            await between()
        try:
            await lifespan.shutdown()
        except AppError as error:
            return None, error
        finally:
            assert len(asyncio.all_tasks()) == 1, "the lifespan task outlives the shutdown"
        return None, None

    async def bounded():
        async with asyncio.timeout(10):
            return await run()

    return asyncio.run(bounded())


def speaks(*, start="lifespan.startup.complete", stop="lifespan.shutdown.complete", then=None, **message):
    """Return an application that answers both messages."""

    async def app(scope, receive, send):
        app.seen.append((await receive())["type"])
        await send({"type": start, **message})
        app.seen.append((await receive())["type"])
        await send({"type": stop, **message})
        if then is not None:
            await then(receive, send)

    app.seen = []
    return app


def raises(error):
    async def app(scope, receive, send):
        raise error

    return app


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_an_application_that_answers_hears_both_messages(mode):
    app = speaks()
    assert cycle(app, mode) == (None, None)
    assert app.seen == ["lifespan.startup", "lifespan.shutdown"]


def test_off_never_calls_the_application():
    assert cycle(raises(AssertionError), "off") == (None, None)


def test_the_scope_carries_the_state_dict_itself():
    state = {}

    async def app(scope, receive, send):
        assert scope["type"] == "lifespan"
        assert scope["asgi"] == {"version": "3.0", "spec_version": "2.0"}
        scope["state"]["pool"] = 1
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()

    assert cycle(app, "on", state) == (None, None)
    assert state == {"pool": 1}


def test_auto_takes_an_early_exception_for_no_support_and_goes_on(caplog):
    with caplog.at_level(logging.INFO, "procmgr.error"):
        assert cycle(raises(AssertionError("only http")), "auto") == (None, None)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "AssertionError: only http" in caplog.text


def test_on_takes_an_early_exception_for_a_failed_start():
    error, _ = cycle(raises(ValueError("no database")), "on")
    assert error.summary == "the application's startup failed: ValueError: no database"
    assert "test_lifespan.py" in error.detail
    assert "procmgr/worker" not in error.detail


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()])
def test_an_application_that_raises_to_end_the_process_fails_to_start_instead(mode, error):
    failure, _ = cycle(raises(error), mode)
    assert type(error).__name__ in failure.summary


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_startup_failed_is_a_failed_start_with_the_applications_words(mode):
    error, _ = cycle(speaks(start="lifespan.startup.failed", message="no database"), mode)
    assert error.summary == "the application's startup failed: no database"
    assert error.detail == ""


def test_a_traceback_as_message_becomes_the_detail_and_its_end_the_summary():
    error, _ = cycle(speaks(start="lifespan.startup.failed", message="Traceback:\n  File\nOSError: down\n"))
    assert error.summary == "the application's startup failed: OSError: down"
    assert error.detail == "Traceback:\n  File\nOSError: down"


def test_an_exception_after_startup_failed_adds_nothing(caplog):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "first"})
        raise ValueError("second")

    error, _ = cycle(app)
    assert error.summary.endswith("first")
    assert not caplog.records


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_an_application_that_returns_without_a_word_is_served(mode):
    async def app(scope, receive, send):
        return

    assert cycle(app, mode) == (None, None)


def test_an_exception_while_serving_is_logged_and_ends_only_the_lifespan(caplog):
    failed = asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        try:
            raise RuntimeError("poller died")
        finally:
            failed.set()

    assert cycle(app, between=failed.wait) == (None, None)
    assert "ended while it serves: RuntimeError: poller died" in caplog.text


@pytest.mark.parametrize("error", [ValueError("late"), SystemExit(3), KeyboardInterrupt()])
def test_an_exception_at_shutdown_is_a_failed_shutdown(error):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise error

    _, failure = cycle(app)
    assert failure.summary.startswith(f"the application's shutdown failed: {type(error).__name__}")


def test_shutdown_failed_is_a_failed_shutdown_with_the_applications_words():
    _, error = cycle(speaks(stop="lifespan.shutdown.failed", message="unsaved"))
    assert error.summary == "the application's shutdown failed: unsaved"


def test_what_is_cleaned_up_after_shutdown_complete_is_waited_for():
    cleaned = []

    async def then(receive, send):
        for _ in range(10):
            await asyncio.sleep(0)
        cleaned.append(True)

    assert cycle(speaks(then=then)) == (None, None)
    assert cleaned


def test_an_application_that_asks_for_ever_is_let_go_after_shutdown():
    async def app(scope, receive, send):
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})

    assert cycle(app) == (None, None)


@pytest.mark.parametrize("kind", ["lifespan.shutdown.complete", "http.response.start", "nonsense"])
def test_a_message_out_of_order_raises_in_the_application(kind):
    error, _ = cycle(speaks(start=kind), "on")
    assert f"sent {kind!r} while starting" in error.summary


def test_a_second_startup_complete_raises_in_the_application(caplog):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.startup.complete"})

    assert cycle(app) == (None, None)
    assert "sent 'lifespan.startup.complete' while serving" in caplog.text


def test_giving_up_on_a_startup_cancels_the_application():
    ended = []

    async def app(scope, receive, send):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def run():
        starting = asyncio.create_task(Lifespan(app=app, mode="on", state={}, log=log).startup())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(run())
    assert ended


def test_giving_up_on_a_shutdown_cancels_the_application():
    ended = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def run():
        lifespan = Lifespan(app=app, mode="on", state={}, log=log)
        await lifespan.startup()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lifespan.shutdown(), 0.01)

    asyncio.run(run())
    assert ended
