"""What goes over the wire: strict bodies, and answers that end when their client goes away."""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, model_validator
from starlette.types import Message, Receive, Scope, Send

from llama.serving.http_errors import HttpError, http_error
from llama.serving.json_output import compact_json

T = TypeVar("T")

_MANY_FIELDS = 200


def _fail_fast(schema: Any) -> None:
    """Lets all lists and dictionaries in pydantic's core schema stop at the first wrong item."""
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "dict"):
            schema["fail_fast"] = True
        for part in schema.values():
            _fail_fast(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _fail_fast(part)


class StrictModel(BaseModel):
    """A JSON object whose fields are all known and of the declared types.

    A field that is declared as None exists in the dialect and is not honoured: only null passes.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Validation stops at the first wrong item: a million errors would take half a minute."""
        schema = handler(source)
        _fail_fast(schema)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_field(cls, data: Any) -> Any:
        """Drops all but one of many unknown fields, since each would be an error of its own."""
        if not isinstance(data, dict) or len(data) <= _MANY_FIELDS:
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = itertools.islice((name for name in data if name not in known), 1)
        return {name: data[name] for name in (*unknown, *(known & data.keys()))}


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


async def stream(
    request: Request,
    chunks: AsyncGenerator[str, None],
    write_error: Callable[[HttpError], str] | None = None,
    media_type: str = "text/event-stream",
) -> StreamingResponse:
    """A response of `chunks`, whose first one is awaited: an error before it has a real status.

    A later one is written by `write_error`; if that is None, as an event in the dialect of the
    route. Where the server sends comments into silence (`ping_seconds`), it waits no longer than
    that for the first chunk.
    """
    pings = (media_type == "text/event-stream" and request.app.state.ping_seconds) or None
    first = asyncio.ensure_future(anext(chunks))
    try:
        await while_connected(request, asyncio.wait({first}, timeout=pings))
        if first.done():
            first.result()
    except BaseException:
        await _close(chunks, first)
        raise

    def error_event(error: HttpError) -> str:
        return server_sent_event(error.body(request.url.path))

    return _Stream(first, chunks, write_error or error_event, media_type, pings)


async def _close(chunks: AsyncGenerator[str, None], *tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await chunks.aclose()


class _Stream(StreamingResponse):
    def __init__(
        self,
        first: asyncio.Future[str],
        chunks: AsyncGenerator[str, None],
        write_error: Callable[[HttpError], str],
        media_type: str,
        pings: float | None,
    ) -> None:
        self._first, self._chunks, self._write_error = first, chunks, write_error
        self._pings = pings
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx: no buffering
        super().__init__(self._all(), headers=headers, media_type=media_type)

    async def _all(self) -> AsyncGenerator[str, None]:
        try:
            yield await self._first
            async for chunk in self._chunks:
                yield chunk
        except Exception as error:
            yield self._write_error(http_error(error))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks: list[asyncio.Future[Any]] = [self._first]
        if self._pings is not None:
            pings = _Pings(send, self._pings)
            send = pings.send
            tasks.append(asyncio.ensure_future(pings.run()))
        try:
            await super().__call__(scope, receive, send)
        finally:
            await _close(self._chunks, *tasks)


class _Pings:
    """Sends a comment whenever nothing was sent for `seconds`."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send, self._seconds = send, seconds
        self._last = time.monotonic()
        self._is_open = False  # between the head of the response and its last byte

    async def send(self, message: Message) -> None:
        self._is_open = bool(message.get("more_body", message["type"] == "http.response.start"))
        await self._send(message)
        self._last = time.monotonic()

    async def run(self) -> None:
        while True:
            left = self._last + self._seconds - time.monotonic()
            if left <= 0 and self._is_open:
                await self.send(
                    {"type": "http.response.body", "body": b": ping\n\n", "more_body": True}
                )
            await asyncio.sleep(left if left > 0 else self._seconds)
