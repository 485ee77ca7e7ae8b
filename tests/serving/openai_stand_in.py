"""A server that speaks OpenAI's wire format, as a script tells it; no model is behind it."""

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Route = Callable[["Handler", dict[str, Any]], None]


class StandIn(ThreadingHTTPServer):
    """`models` are its models' names, `answer` writes the response to a chat completion."""

    daemon_threads = True

    def __init__(self, answer: Route, models: list[str], key: str | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.models, self.key = answer, models, key
        self.bodies: list[dict[str, Any]] = []
        self.disconnected = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints no traceback for a client that has gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def do_GET(self) -> None:
        if self.refuse_key():
            return
        data = [{"id": name, "object": "model"} for name in self.server.models]
        self.send_json(200, {"object": "list", "data": data})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refuse_key():
            return
        self.server.bodies.append(body)
        assert self.path == "/v1/chat/completions"
        self.server.answer(self, body)

    def refuse_key(self) -> bool:
        key = self.server.key
        wrong = key is not None and self.headers.get("Authorization") != f"Bearer {key}"
        if wrong:
            self.send_json(401, {"error": {"message": "the key is wrong", "type": "x"}})
        return wrong

    def send_json(self, status: int, content: Any) -> None:
        self.send_data(status, json.dumps(content).encode(), "application/json")

    def send_data(self, status: int, data: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def write_bytes(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def write_event(self, content: Any) -> None:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        self.write_bytes(f"data: {text}\n\n".encode())

    def write_text(self, *texts: str) -> None:
        for text in texts:
            self.write_event(chunk({"content": text}))

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args: object) -> None:
        pass


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "x", "object": "chat.completion.chunk", "choices": [choice]}


def standard(handler: Handler, body: dict[str, Any]) -> None:
    """A whole answer, as OpenAI streams it."""
    handler.begin_stream()
    handler.write_event(chunk({"role": "assistant", "content": ""}))
    handler.write_text("Hello", ", ", "世界\u2028!")
    handler.write_event(chunk({}, "stop"))
    usage = {
        "prompt_tokens": 300,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 256},
    }
    handler.write_event({"id": "x", "choices": [], "usage": usage})
    handler.write_event("[DONE]")
    handler.end_stream()


@contextlib.contextmanager
def serving(
    answer: Route = standard, models: tuple[str, ...] = ("tiny",), key: str | None = None
) -> Iterator[StandIn]:
    server = StandIn(answer, list(models), key)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
