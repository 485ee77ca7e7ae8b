"""Requests whose client goes, that take too long, that fail, and the others beside them."""

import contextlib
import gc
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from serving.conftest import TINY, running

from llama import Engine, Llama, Sequence
from llama.serving.app import create_app
from llama.serving.registry import Limits, ModelRegistry

CHAT = "/v1/chat/completions"
STORY: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "ignore_eos": True,
    "seed": 1,
}


class Served:
    """A server of its own, whose engine the test may hold."""

    def __init__(self, url: str, llama: Llama) -> None:
        self.url, self.llama, self.engine = url, llama, llama.engine
        self.results: list[httpx.Response] = []
        self._threads: list[threading.Thread] = []

    def until(self, condition: Callable[[Any], bool]) -> None:
        """Waits until the engine's stats fulfil a condition."""
        deadline = time.monotonic() + 60
        while not condition(self.engine.stats):
            assert time.monotonic() < deadline, self.engine.stats
            time.sleep(0.001)

    def begin(self, **body: Any) -> None:
        """Sends a request from a thread, whose response `finish` returns."""

        def send() -> None:
            self.results.append(httpx.post(self.url + CHAT, json={**STORY, **body}, timeout=60))

        self._threads.append(threading.Thread(target=send))
        self._threads[-1].start()

    def finish(self) -> list[httpx.Response]:
        while self._threads:
            self._threads.pop().join()
        return self.results


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    with contextlib.ExitStack() as stack:

        def serve(ping_seconds: float = 0, limits: Limits | None = None, **options: Any) -> Served:
            options = {"max_seq_len": 1024, "device": "cpu", **options}
            models = ModelRegistry({"tiny": TINY}, keep_alive=-1, limits=limits, **options)
            models.load("tiny")
            stack.callback(models.close)
            url = stack.enter_context(running(create_app(models, ping_seconds=ping_seconds)))
            return Served(url, models.loaded[0].llama)

        yield serve


def send(url: str, body: dict[str, Any]) -> socket.socket:
    """A raw connection with a request on it."""
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname, address.port))
    content = json.dumps({**STORY, **body}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.filterwarnings("ignore:max_seq_len")
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_goes_ends_its_work(serve: Any, is_stream: bool) -> None:
    served = serve(max_batch_size=1, max_seq_len=20000)
    first = send(served.url, {"stream": is_stream})
    served.until(lambda stats: stats.running == 1)
    waiting = send(served.url, {"stream": is_stream})
    served.until(lambda stats: stats.waiting == 1)
    waiting.close()
    served.until(lambda stats: stats.finished["cancelled"] == 1)
    assert served.engine.stats.running == 1
    first.close()
    served.until(lambda stats: stats.finished["cancelled"] == 2)
    stats = served.engine.stats
    assert (stats.running, stats.waiting, stats.kv_positions_used) == (0, 0, 0)


@pytest.mark.filterwarnings("ignore:max_seq_len")
def test_a_request_that_takes_too_long(serve: Any) -> None:
    served = serve(limits=Limits(timeout=0.3), max_seq_len=20000)
    served.begin()
    (response,) = served.finish()
    assert response.status_code == 400  # it would again
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("timeout", "max_tokens")
    assert "not finished after 0.3 s" in error["message"]
    served.until(lambda stats: stats.running == 0)


def test_a_request_that_waits_too_long(serve: Any) -> None:
    served = serve(limits=Limits(timeout=0.01))
    with served.engine._stepping:
        served.begin()
        while len(served.engine.inbox._entries) < 2:  # the request and its cancellation
            time.sleep(0.001)
    (response,) = served.finish()
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert "waited 0.01 s" in response.json()["error"]["message"]


def test_prompts_that_wait_are_bounded_in_tokens(serve: Any) -> None:
    served = serve(limits=Limits(max_queue_tokens=50))
    long = [{"role": "user", "content": "word " * 100}]
    with served.engine._stepping:  # nothing is admitted
        served.begin(messages=long, max_tokens=1)
        served.until(lambda stats: stats.waiting == 1)
        response = httpx.post(served.url + CHAT, json=STORY)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "5"
        assert "of at most 50 (--max_queue_tokens)" in response.json()["error"]["message"]
    (done,) = served.finish()
    assert done.status_code == 200


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_request_that_fails_leaves_the_others_alone(
    serve: Any, monkeypatch: pytest.MonkeyPatch, is_stream: bool
) -> None:
    served = serve()
    served.begin(max_tokens=200, logprobs=True)
    (alone,) = served.finish()
    append = Sequence.append

    def fail(self: Sequence, *args: Any) -> None:
        if self.params.seed == 13 and len(self.tokens) == 5:
            raise ZeroDivisionError("a defect")
        append(self, *args)

    monkeypatch.setattr(Sequence, "append", fail)
    served.begin(max_tokens=200, logprobs=True)
    failed = httpx.post(served.url + CHAT, json={**STORY, "seed": 13, "stream": is_stream})
    if is_stream:
        assert failed.status_code == 200
        *_, last = [line for line in failed.text.split("\n\n") if line]
        error = json.loads(last.removeprefix("data: "))["error"]
    else:
        assert failed.status_code == 500
        error = failed.json()["error"]
    assert (error["type"], error["message"]) == ("server_error", "ZeroDivisionError: a defect")
    first, second = served.finish()
    assert first is alone
    assert second.json()["choices"] == alone.json()["choices"]


def test_a_defect_in_the_engine_ends_what_runs_and_shows_in_the_health(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    with served.engine._stepping:
        served.begin()
        served.until(lambda stats: stats.waiting == 1)

        def fail(self: Engine) -> None:
            raise ZeroDivisionError("a defect")

        monkeypatch.setattr(Engine, "step", fail)
    (response,) = served.finish()
    assert response.status_code == 500
    health = httpx.get(f"{served.url}/health")
    assert health.status_code == 503
    assert health.json()["error"]["message"] == "tiny can't go on: ZeroDivisionError('a defect')"
    assert httpx.post(served.url + CHAT, json=STORY).status_code == 500


def test_comments_only_into_silence(serve: Any) -> None:
    served = serve(ping_seconds=0.05)
    body = {**STORY, "stream": True, "max_tokens": 3}
    with served.engine._stepping:
        stream = httpx.stream("POST", served.url + CHAT, json=body, timeout=60)
        response = stream.__enter__()
        lines = response.iter_lines()
        assert [next(lines) for _ in range(4)] == [": ping", "", ": ping", ""]
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    rest = [line for line in lines if line and line != ": ping"]
    assert all(line.startswith("data: ") for line in rest)
    assert rest[-1] == "data: [DONE]"
    stream.__exit__(None, None, None)


def test_an_error_after_a_comment_is_an_event(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(ping_seconds=0.05)

    def fail(self: Sequence, *args: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Sequence, "append", fail)
    with served.engine._stepping:
        body = {**STORY, "stream": True}
        stream = httpx.stream("POST", served.url + CHAT, json=body, timeout=60)
        lines = stream.__enter__().iter_lines()
        assert next(lines) == ": ping"
    *_, last = [line for line in lines if line and line != ": ping"]
    assert "a defect" in json.loads(last.removeprefix("data: "))["error"]["message"]
    stream.__exit__(None, None, None)


def test_without_pings_an_error_has_its_status_however_late(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()

    def fail(self: Sequence, *args: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Sequence, "append", fail)
    response = httpx.post(served.url + CHAT, json={**STORY, "stream": True})
    assert response.status_code == 500


def test_requests_that_have_ended_leave_nothing(serve: Any) -> None:
    served = serve()

    def count() -> int:
        gc.collect()
        return sum(type(found) is Sequence for found in gc.get_objects())

    def send_all() -> None:
        for body in ({}, {"stream": True}, {"n": 3}, {"wrong": 1}, {"logprobs": True}):
            httpx.post(served.url + CHAT, json={**STORY, "max_tokens": 3, **body})
        send(served.url, {"stream": True}).close()
        served.until(lambda stats: stats.running == stats.waiting == 0)

    send_all()
    before = count()
    for _ in range(5):
        send_all()
    deadline = time.monotonic() + 60
    while count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert count() <= before
