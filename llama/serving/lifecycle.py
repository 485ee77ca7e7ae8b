"""What a server is doing: it loads a model, takes requests, or ends.

    lifecycle = Lifecycle(phase="loading")
    Server(config, lifecycle, registry, load=...).run(sockets)

The port listens from the beginning to the end, so that health checks and clients get an answer.
On SIGTERM or Ctrl-C new requests are refused, running ones get time to finish, and what is not done
by then ends with an error that says so. The exit status is 0. A second Ctrl-C ends the process at
once.
"""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import FrameType
from typing import Literal

import uvicorn

from llama.serving.http_errors import RETRY_LATER, HttpError
from llama.serving.registry import ModelRegistry

_CLOSING_SECONDS = 5  # for what is left of cancelled requests


@dataclass
class Lifecycle:
    """The phase of a server, and how many requests it has."""

    phase: Literal["loading", "ready", "draining"] = "ready"
    num_requests: int = 0

    def refusal(self) -> HttpError | None:
        """Why no request is taken now; None if it is."""
        if self.phase == "loading":
            return HttpError(503, "the model is being loaded", code="loading", headers=RETRY_LATER)
        if self.phase == "draining":
            headers = {**RETRY_LATER, "Connection": "close"}
            return HttpError(503, "the server is shutting down", code="draining", headers=headers)
        return None


class Server(uvicorn.Server):
    """Runs an application from the first connection until its requests are done.

    load: makes the server ready; an exception in it ends the server, and is `error` then.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        lifecycle: Lifecycle,
        models: ModelRegistry,
        load: Callable[[], Awaitable[None]],
        drain_seconds: float,
    ) -> None:
        super().__init__(config)
        config.timeout_graceful_shutdown = _CLOSING_SECONDS
        self.error: BaseException | None = None
        self._lifecycle, self._models = lifecycle, models
        self._load, self._drain_seconds = load, drain_seconds

    def run_on(self, listener: socket.socket) -> None:
        """Serves on a socket until a signal ends it. Raises what `load` raised."""
        self.run([listener])
        if self.error is not None:
            raise self.error

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loading = asyncio.create_task(self._become_ready())

    async def _become_ready(self) -> None:
        try:
            await self._load()
        except Exception as error:
            self.error, self.should_exit = error, True
        else:
            if self._lifecycle.phase == "loading":
                self._lifecycle.phase = "ready"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            os._exit(130)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._lifecycle.phase = "draining"
        self._loading.cancel()
        deadline = time.monotonic() + self._drain_seconds
        while self._lifecycle.num_requests and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self._models.close)
        await super().shutdown(sockets)
