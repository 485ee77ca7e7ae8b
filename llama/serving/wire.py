"""What goes over the wire: strict bodies, and answers that end when their client goes away."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.types import Receive, Scope, Send

from llama.serving.http_errors import HttpError, http_error

T = TypeVar("T")


class StrictModel(BaseModel):
    """A JSON object whose fields are all known and of the declared types.

    A field that is declared as None exists in the dialect and is not honoured: only null passes.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Disconnected(Exception):
    """The client is gone."""


async def while_connected(request: Request, awaitable: Awaitable[T]) -> T:
    """The result of `awaitable`, which is cancelled when the client goes away."""
    work = asyncio.ensure_future(awaitable)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise HttpError(499, "the client closed the connection")
        return work.result()
    finally:
        gone.cancel()
        work.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def server_sent_event(data: Any, event: str | None = None) -> str:
    """An event of a text/event-stream."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {compact_json(data)}\n\n"


def compact_json(data: Any) -> str:
    """JSON without white space, in which characters beyond ASCII are themselves."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


async def stream(
    request: Request,
    chunks: AsyncGenerator[str, None],
    write_error: Callable[[HttpError], str] | None = None,
    media_type: str = "text/event-stream",
) -> StreamingResponse:
    """A response of `chunks`, whose first one is awaited: an error before it has a real status.

    A later one is written by `write_error`; if that is None, as an event in the dialect of the
    route.
    """
    try:
        first = await while_connected(request, anext(chunks))
    except BaseException:
        await chunks.aclose()
        raise

    def error_event(error: HttpError) -> str:
        return server_sent_event(error.body(request.url.path))

    return _Stream(first, chunks, write_error or error_event, media_type)


class _Stream(StreamingResponse):
    def __init__(
        self,
        first: str,
        chunks: AsyncGenerator[str, None],
        write_error: Callable[[HttpError], str],
        media_type: str,
    ) -> None:
        self._chunks, self._write_error = chunks, write_error
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx: no buffering
        super().__init__(self._all(first), headers=headers, media_type=media_type)

    async def _all(self, first: str) -> AsyncGenerator[str, None]:
        yield first
        try:
            async for chunk in self._chunks:
                yield chunk
        except Exception as error:
            yield self._write_error(http_error(error))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._chunks.aclose()
