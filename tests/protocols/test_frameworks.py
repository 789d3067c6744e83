"""Real frameworks over real sockets, with both parsers: what their users take for granted works."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import uvloop
from support.embedded import Client, serving


@pytest.fixture(params=["httptools", "h11"])
def http(request):
    return request.param


@pytest.fixture(params=["uvloop", "asyncio"])
def runner(request):
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield lambda coroutine: runner.run(asyncio.wait_for(coroutine, 20))


def using(runner, app, http, test):
    """Serve `app` and run `test` with an httpx client, or with the server too if it takes two arguments."""

    async def run():
        async with (
            serving(app, http=http) as server,
            httpx.AsyncClient(base_url=server.urls[0], trust_env=False, timeout=20) as client,
        ):
            await (test(client, server) if test.__code__.co_argcount == 2 else test(client))

    runner(run())


NUMBERS = "".join(f"{number}\n" for number in range(100))


class TestStarlette:
    @pytest.fixture
    def serve(self, runner, http):
        from support.apps.starlette_app import app

        return lambda test: using(runner, app, http, test)

    def test_base_http_middleware_sees_request_and_response(self, serve):
        async def test(client):
            response = await client.get("/")
            assert response.text == "hello"
            assert response.headers["x-stamp"] == "GET"
            assert (await client.head("/")).headers["content-length"] == "5"

        serve(test)

    def test_scope_body_and_lifespan_state_arrive(self, serve):
        async def test(client):
            response = await client.post("/echo?a=1&b=%20", content=b"\x00body\xff")
            assert response.json() == {
                "method": "POST",
                "path": "/echo",
                "query": "a=1&b=%20",
                "body": "\x00body\xff",
                "client": "127.0.0.1",
                "started": True,
            }

        serve(test)

    def test_a_chunked_upload_is_streamed_to_the_application(self, serve):
        async def test(client):
            async def chunks():
                for _ in range(50):
                    yield b"x" * 10_000

            assert (await client.post("/upload", content=chunks())).text == "500000"

        serve(test)

    def test_a_response_is_streamed(self, serve):
        async def test(client):
            response = await client.get("/stream")
            assert response.text == NUMBERS
            assert response.headers["transfer-encoding"] == "chunked"

        serve(test)

    def test_a_stream_ends_when_the_client_goes_through_the_middleware_too(self, serve):
        async def test(client, server):
            gone = await Client.connect(server)
            gone.send("/endless")
            await gone.reader.readexactly(10_000)
            gone.writer.transport.abort()
            assert (await client.get("/gone")).text == "gone"

        serve(test)

    def test_a_file_is_sent_whole_and_in_ranges(self, serve):
        async def test(client):
            from support.apps.starlette_app import FILE_BYTES

            whole = await client.get("/file")
            assert len(whole.content) == FILE_BYTES
            part = await client.get("/file", headers={"range": "bytes=100002-100005"})
            assert part.status_code == 206
            assert part.content == b"2345"
            head = await client.head("/file")
            assert head.headers["content-length"] == str(FILE_BYTES)

        serve(test)

    def test_a_background_task_runs_after_the_answer(self, serve):
        async def test(client):
            assert (await client.get("/background")).text == "accepted"
            assert (await client.get("/worked")).text == "worked"

        serve(test)

    def test_an_exception_is_a_500_and_logged_once_with_its_traceback(self, serve, caplog):
        async def test(client):
            assert (await client.get("/broken")).status_code == 500
            assert (await client.get("/")).status_code == 200

        serve(test)
        errors = [record for record in caplog.records if record.levelname == "ERROR"]
        assert len(errors) == 1
        assert "broken on purpose" in caplog.text

    def test_a_mounted_route_knows_its_root_path_and_url(self, serve):
        async def test(client, server):
            response = await client.get("/sub/inner")
            assert response.text == f"/sub|{server.urls[0]}/sub/inner"

        serve(test)

    def test_many_clients_at_once_each_get_their_own_answer(self, serve):
        async def test(client):
            answers = await asyncio.gather(*(client.post("/echo", content=f"{n}") for n in range(50)))
            assert [answer.json()["body"] for answer in answers] == [f"{n}" for n in range(50)]

        serve(test)


class TestFastAPI:
    @pytest.fixture
    def serve(self, runner, http):
        from support.apps.fastapi_app import app

        return lambda test: using(runner, app, http, test)

    def test_the_lifespans_state_reaches_requests(self, serve):
        async def test(client):
            assert (await client.get("/")).json() == {"greeting": "hello"}

        serve(test)

    def test_path_body_and_header_are_validated(self, serve):
        async def test(client):
            item = {"name": "tea", "price": 2.5}
            good = await client.post("/items/7", json=item, headers={"x-token": "t"})
            assert good.json() == {"number": 7, "token": "t", **item}
            assert (await client.post("/items/7", json={"name": "tea"}, headers={"x-token": "t"})).status_code == 422
            assert (await client.post("/items/seven", json=item)).status_code == 422

        serve(test)

    def test_a_sync_endpoint_runs_in_a_thread(self, serve):
        async def test(client):
            assert (await client.get("/sync")).json() == {"main_thread": False}

        serve(test)

    def test_a_dependency_is_cleaned_up_and_a_background_task_runs(self, serve):
        async def test(client):
            assert (await client.get("/session")).json() == {"sessions": 1}
            assert (await client.get("/later")).json() == {"accepted": True}
            while (sessions := (await client.get("/sessions")).json()) != ["open", "closed", "task"]:
                assert len(sessions) < 3

        serve(test)

    def test_an_http_exception_and_an_unknown_path_have_their_status(self, serve):
        async def test(client):
            response = await client.get("/teapot")
            assert (response.status_code, response.json()) == (418, {"detail": "short and stout"})
            assert (await client.get("/nowhere")).status_code == 404
            assert (await client.get("/openapi.json")).json()["openapi"].startswith("3.")

        serve(test)

    def test_a_sync_generator_is_streamed(self, serve):
        async def test(client):
            assert (await client.get("/stream")).text == NUMBERS

        serve(test)


class TestDjango:
    @pytest.fixture
    def serve(self, runner, http):
        from support.apps.django_app import app

        return lambda test: using(runner, app, http, test)

    def test_sync_and_async_views_answer(self, serve):
        async def test(client):
            response = await client.get("/?a=1")
            assert response.json() == {"method": "GET", "query": {"a": "1"}, "remote": "127.0.0.1"}
            assert (await client.get("/async")).text == "async"

        serve(test)

    def test_a_form_is_read(self, serve):
        async def test(client):
            response = await client.post("/form", data={"name": "Ünal", "text": "x" * 100_000})
            assert response.json() == {"name": "Ünal", "text": "x" * 100_000}

        serve(test)

    def test_a_file_is_uploaded(self, serve):
        async def test(client):
            content = bytes(range(256)) * 4000
            response = await client.post("/upload", files={"file": ("bytes.bin", content)})
            assert response.json() == {"name": "bytes.bin", "size": len(content), "sum": sum(content) % 65521}

        serve(test)

    def test_a_response_is_streamed(self, serve):
        async def test(client):
            assert (await client.get("/stream")).text == NUMBERS

        serve(test)

    def test_an_exception_is_djangos_500(self, serve, caplog):
        async def test(client):
            response = await client.get("/broken")
            assert response.status_code == 500
            assert "Server Error" in response.text

        serve(test)

    def test_it_has_no_lifespan_and_is_served_without(self, serve, caplog):
        async def test(client):
            assert (await client.get("/async")).status_code == 200

        with caplog.at_level("INFO", "procmgr.error"):
            serve(test)
        assert "does not support the lifespan protocol" in caplog.text
