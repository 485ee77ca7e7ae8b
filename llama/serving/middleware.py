"""What happens to every request before its route sees it, as plain ASGI middleware.

Starlette's BaseHTTPMiddleware would hide from a route that its client has gone.
"""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send


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
