"""What happens to every request before its route sees it, as plain ASGI middleware.

Starlette's BaseHTTPMiddleware would hide from a route that its client has gone.
"""

import contextlib
import hmac
import ipaddress
import re
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama.serving.http_errors import HttpError, http_error
from llama.serving.lifecycle import Lifecycle

# Pages that this machine serves, and no others, may call a server without further ado.
_LOCAL_ORIGIN = re.compile(r"https?://(localhost|[\w-]+\.localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
_PORT = re.compile(r":\d+$")
# To anyone, always; the web page asks for a key itself.
_OPEN = re.compile(r"/|/page/[^/]*|(/v1)?/health")


def install(
    app: FastAPI,
    lifecycle: Lifecycle,
    api_keys: Sequence[str],
    cors: Sequence[str],
    max_body_size: int,
) -> None:
    """Puts all of them around `app`; a request goes through the last one first."""
    app.add_middleware(JsonBodies)
    app.add_middleware(BodyLimit, max_body_size=max_body_size)
    app.add_middleware(Admission, lifecycle=lifecycle)
    if api_keys:
        app.add_middleware(ApiKeys, keys=api_keys)
    app.add_middleware(Errors)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=cors,
        allow_origin_regex=_LOCAL_ORIGIN.pattern,
        allow_methods=["*"],
        allow_headers=["*"],
    )
    app.add_middleware(Origins, allowed=cors)


class Origins:
    """Refuses what pages of other origins send; programs send no Origin.

    Without it any page could use a server on its reader's machine: a browser sends a POST of plain
    text before it asks whether the page may read the answer.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app, self._allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            known = origin is None or "*" in self._allowed or origin in self._allowed
            if origin is not None and not (known or _is_own(origin, headers.get("host", ""))):
                text = f"pages of {origin[:200]!r} may not use this server (--cors allows them)"
                error = HttpError(403, text)
                await error.response(scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_own(origin: str, host: str) -> bool:
    """Whether a page is this machine's, or was loaded from the address that it now calls.

    From an address and not a name: any name may suddenly mean this machine (DNS rebinding).
    """
    if _LOCAL_ORIGIN.fullmatch(origin):
        return True
    return origin.partition("://")[2] == host and _is_address(_PORT.sub("", host))


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        return True
    return False


class Hosts:
    """Refuses requests whose Host is a name that nobody allowed.

    A page whose own name suddenly means this machine (DNS rebinding) has that name as its Host.
    Addresses are no names, and localhost means no other machine.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app, self._allowed = app, {name.lower() for name in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            if not self._is_known(host):
                text = f"this server is not called {host[:200]!r} (--hosts allows names)"
                error = HttpError(421, text)
                await error.response(scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_known(self, host: str) -> bool:
        name = _PORT.sub("", host.lower())
        if "*" in self._allowed or name in self._allowed:
            return True
        return name == "localhost" or name.endswith(".localhost") or _is_address(name)


class Errors:
    """Answers an exception that nothing else does in the dialect of its route.

    One in the middle of an answer is uvicorn's, which ends the connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def watch(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            if has_started or scope["type"] != "http":
                raise
            await http_error(error).response(scope["path"])(scope, receive, send)


class ApiKeys:
    """Asks for one of the keys, as a Bearer token or in x-api-key."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _OPEN.fullmatch(scope["path"]):
            headers = Headers(scope=scope)
            scheme, _, token = headers.get("authorization", "").partition(" ")
            given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            # All are compared, in constant time: how long it takes says nothing about a key.
            if not any([hmac.compare_digest(given.encode("latin-1"), key) for key in self._keys]):
                text = "wrong API key" if given else "an API key is needed"
                error = HttpError(
                    401,
                    f"{text}: Authorization: Bearer KEY, or x-api-key: KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await error.response(scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Admission:
    """Refuses requests while the server loads or ends, and counts those that it has."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app, self._lifecycle = app, lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] != "http" or _OPEN.fullmatch(scope["path"])
        if is_open or scope["path"] == "/metrics":
            await self._app(scope, receive, send)
        elif refusal := self._lifecycle.refusal():
            await refusal.response(scope["path"])(scope, receive, send)
        else:
            self._lifecycle.num_requests += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._lifecycle.num_requests -= 1


class BodyLimit:
    """Refuses bodies of more than `max_body_size` bytes."""

    def __init__(self, app: ASGIApp, max_body_size: int) -> None:
        self._app, self._max = app, max_body_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        text = f"the body is larger than {self._max:,} bytes (--max_body_size)"
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max:
            await HttpError(413, text).response(scope["path"])(scope, receive, send)
            return
        size = 0

        async def count() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max:
                raise HTTPException(413, text)  # FastAPI rewords others
            return message

        await self._app(scope, count, send)


class JsonBodies:
    """Lets every body be read as JSON: `curl -d` declares that of a form, other clients nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = MutableHeaders(raw=list(scope["headers"]))
            headers["content-type"] = "application/json"
            scope = {**scope, "headers": headers.raw}
        await self._app(scope, receive, send)
