"""Errors as each dialect writes them.

`HttpError` is what handlers raise. `install` turns it, the package's input errors, wrong fields and
everything else into a response in the dialect of the route.
"""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from llama.errors import ContextLengthError, InputError, MissingFileError, message
from llama.serving.json_output import JSONResponse

_log = logging.getLogger("llama.serving")

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_MAX_ECHO = 200  # characters of a client's input in a message
_MAX_MESSAGE = 2000  # of a message, whatever it echoes


RETRY_LATER = {"Retry-After": "5"}  # headers of a 503


class HttpError(Exception):
    """An answer that is an error: its status, a message, and OpenAI's `param` and `code`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message[:_MAX_MESSAGE]
        self.param, self.code, self.headers = param, code, headers

    def body(self, path: str) -> dict[str, Any]:
        """The error in the dialect of the route `path`."""
        if path.startswith("/api/"):
            return {"error": self.message}
        if is_anthropic(path):
            default = "invalid_request_error" if self.status < 500 else "api_error"
            kind = _ANTHROPIC_TYPES.get(self.status, default)
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        default = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": _OPENAI_TYPES.get(self.status, default),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self, path: str) -> JSONResponse:
        """The response in the dialect of the route `path`."""
        return JSONResponse(self.body(path), self.status, self.headers)


def is_anthropic(path: str) -> bool:
    """Whether a route is one of Anthropic's."""
    return path.removeprefix("/v1").startswith("/messages")


def http_error(error: BaseException) -> HttpError:
    """Any exception as an `HttpError`; what is no input error is a defect, which is logged."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, RequestValidationError):
        return _wrong_field(error.errors(), error.body)
    if isinstance(error, HTTPException):
        return HttpError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    if isinstance(error, MissingFileError):
        return HttpError(404, message(error))
    if isinstance(error, ContextLengthError):
        return HttpError(400, message(error), code="context_length_exceeded")
    if isinstance(error, InputError):
        return HttpError(400, message(error))
    _log.error("a request failed", exc_info=error)
    return HttpError(500, f"{type(error).__name__}: {str(error)[:_MAX_ECHO]}")


def install(app: FastAPI) -> None:
    """Lets `app` answer errors in the dialect of the route; see `middleware.Errors` for others."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        found = http_error(error)
        if isinstance(error, HTTPException) and error.status_code in (404, 405):
            found.message = f"{error.detail}: {request.method} {request.url.path[:_MAX_ECHO]}"
        # Of several routes with one path, Starlette's 405 names the methods of one.
        if found.status == 405 and (methods := app.openapi()["paths"].get(request.url.path)):
            found.headers = {"Allow": ", ".join(sorted(map(str.upper, methods)))}
        return found.response(request.url.path)

    for kind in (HttpError, RequestValidationError, HTTPException, InputError):
        app.add_exception_handler(kind, handle)


def _wrong_field(errors: Sequence[Any], body: Any) -> HttpError:
    """A wrong field of a body by name, with a bounded echo of its value."""
    if errors[0]["type"] == "json_invalid":
        reason = errors[0]["ctx"]["error"]
        return HttpError(400, f"the body is not JSON: {reason}", code="invalid_json")
    # Where several types are allowed, the one that fits best is wrong the deepest.
    paths = [_field_path(error, body) for error in errors]
    path = max(paths, key=len)
    error = errors[paths.index(path)]
    param = ".".join(path) or None
    if error["type"] == "extra_forbidden":
        text = f"{param}: this server does not know the field, and ignores none"
        return HttpError(400, text, param=param, code="unknown_field")
    if error["type"] == "none_required":
        text = f"{param}: this server does not support the field, and ignores none"
        return HttpError(400, text, param=param, code="unsupported_field")
    reasons = [e["msg"] for e, p in zip(errors, paths, strict=True) if p == path]
    text = " or ".join(dict.fromkeys(reasons))
    text = f"{param}: {text}" if param else text
    if error["type"] != "missing":
        text += f", got {repr(error['input'])[:_MAX_ECHO]}"
    return HttpError(400, text, param=param, code="invalid_value")


def _field_path(error: Any, body: Any) -> list[str]:
    """Where a wrong field is; pydantic also names the members of unions, which are no fields."""
    parts, path = error["loc"], []
    if parts[0] != "body":
        return [str(part) for part in parts[1:]]
    for part in parts[1:]:
        is_field = isinstance(body, dict) and part in body
        is_item = isinstance(body, list) and isinstance(part, int) and part < len(body)
        if is_field or is_item:
            body = body[part]
            path.append(str(part)[:_MAX_ECHO])
    if error["type"] == "missing":
        path.append(str(parts[-1]))
    return path
