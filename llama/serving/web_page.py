"""The web page of a server: GET /, and its files under /page.

It is plain HTML, CSS and JavaScript modules in the folder `page`, asks the server's own routes, and
nothing else: its content security policy allows no other address and no inline code.
"""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse

from llama.serving.http_errors import HttpError

_FOLDER = Path(__file__).with_name("page")
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",  # the files of one release go together
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def routes() -> APIRouter:
    """The routes of the page."""
    router = APIRouter(tags=["Web page"])
    page = (_FOLDER / "index.html").read_text(encoding="utf-8")
    files = {
        file.name: (file.read_bytes(), _MEDIA_TYPES[file.suffix])
        for file in _FOLDER.iterdir()
        if file.suffix in _MEDIA_TYPES
    }

    @router.get("/", response_class=HTMLResponse, responses={200: {"content": {"text/plain": {}}}})
    @router.head("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        """The web page; to clients that ask for no HTML, the words by which they know Ollama."""
        headers = {**_HEADERS, "Vary": "Accept"}
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(page, headers=headers)
        return PlainTextResponse("Ollama is running", headers=headers)

    @router.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        """A file of the page."""
        if name not in files:
            raise HttpError(404, f"the page has no file {name[:200]!r}")
        content, media_type = files[name]
        return Response(content, media_type=media_type, headers=_HEADERS)

    return router
