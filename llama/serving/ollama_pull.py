"""What changes the models of a server that serves all pulled ones: POST /api/pull and /api/copy,
DELETE /api/delete.

A pull is a stream of lines with its progress. A client that goes away ends it at its next news, and
the same request continues it.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from llama.checkpoint import pulling
from llama.checkpoint.pulling import PullEvent
from llama.errors import message
from llama.serving.http_errors import HttpError
from llama.serving.json_output import JSONResponse
from llama.serving.ollama_answers import lines, ndjson
from llama.serving.ollama_fields import NamedModel
from llama.serving.registry import ModelRegistry
from llama.serving.wire import StrictModel, while_connected
from llama.storage import pulled


class PullFields(NamedModel):
    """The body of POST /api/pull; `insecure` changes nothing."""

    stream: bool | None = None
    insecure: bool | None = None


class CopyFields(StrictModel):
    """The body of POST /api/copy."""

    source: str
    destination: str


class PullLine(BaseModel):
    """What a pull does; `total` and `completed` are bytes of the file with this digest."""

    status: str
    digest: str | None = None
    total: int | None = None
    completed: int | None = None


def routes(models: ModelRegistry) -> APIRouter:
    """The routes that change what is there."""
    router = APIRouter()

    def check() -> None:
        if not models.may_change:
            names = ", ".join(models.names)
            raise HttpError(
                403,
                f"this server serves {names} only; `llama serve` without a model serves all that "
                "were pulled, and pulls others",
            )

    @router.post("/api/pull", response_model=None, responses=ndjson(PullLine))
    async def pull(body: PullFields, request: Request) -> Response:
        """Downloads a model, or what is missing of it."""
        check()
        events = _pull(body.named)
        if body.stream is False:
            return JSONResponse(await while_connected(request, _last(events)))
        return await lines(request, events)

    @router.post("/api/copy", response_model=None)
    def copy(body: CopyFields) -> Response:
        """Gives a pulled model another name."""
        check()
        pulled.copy(body.source, body.destination)
        return Response()

    @router.delete("/api/delete", response_model=None)
    @router.post("/api/delete", response_model=None)
    async def delete(body: NamedModel) -> Response:
        """Removes a pulled model, from memory too."""
        check()
        if models.is_loaded(body.named):
            async with models.use(body.named, keep_alive=0):
                pass
        await asyncio.to_thread(pulled.remove, body.named)
        return Response()

    return router


async def _last(events: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    async with aclosing(events):
        async for event in events:
            last = event
    return last


async def _pull(name: str) -> AsyncGenerator[dict[str, Any], None]:
    """A pull in a thread of its own."""
    loop = asyncio.get_running_loop()
    events = asyncio.Queue[PullEvent | BaseException | None]()
    is_gone = threading.Event()

    def put(event: PullEvent | BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(events.put_nowait, event)

    def run() -> None:
        try:
            with contextlib.closing(pulling.pull(name)) as news:
                for event in news:
                    put(event)
                    if is_gone.is_set():
                        return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=run, name="llama pull", daemon=True).start()
    try:
        while (event := await events.get()) is not None:
            if isinstance(event, PullEvent):
                yield event.as_json()
            else:
                raise _http_error(event)
    finally:
        is_gone.set()


def _http_error(error: BaseException) -> BaseException:
    """What a hub, the network or the disk refuses, with its reason; other errors as they are."""
    statuses = ((PermissionError, 403), (ConnectionError, 502), (OSError, 500))
    if isinstance(error, ValueError):  # an input error
        return error
    status = next((status for kind, status in statuses if isinstance(error, kind)), None)
    if status is None or not isinstance(error, Exception):
        return error
    return HttpError(status, message(error))
