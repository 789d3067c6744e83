"""A file of 1 MiB, as Starlette sends it: by its path where the server offers that."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

SIZE: Final = 1024 * 1024

_file = tempfile.NamedTemporaryFile(prefix="procmgr-bench-")  # noqa: SIM115 - it is to be there as long as the worker
_file.write(bytes(range(256)) * (SIZE // 256))
_file.flush()


async def _answer(_: Request) -> FileResponse:
    return FileResponse(_file.name)


app = Starlette(routes=[Route("/", _answer), Route("/{other}", _answer)])
