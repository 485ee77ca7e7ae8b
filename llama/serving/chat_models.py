"""What answers in a chat: a model in this process, or one on a server.

    LocalModel(Llama.build("params/tiny"), "params/tiny")
    ServerModel("http://127.0.0.1:8000", model="tiny", api_key=None)

Both are a `ChatModel` (`chat_session.py`). A server is asked in OpenAI's dialect
(https://platform.openai.com/docs/api-reference/chat), so it may be another program than this one.
"""

import asyncio
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpx

from llama.errors import InputError
from llama.generation import Llama
from llama.serving.chat_session import DEFAULTS, Statistics, nearest, sequence_of
from llama.tokenizer import Message

# Long prompts and models that are loaded first may take minutes.
_TIMEOUT = httpx.Timeout(600, connect=10)
_POLL = 0.1  # seconds between looks at whether to stop


class LocalModel:
    """A `Llama` in this process. The turns before come from its engine's prefix store."""

    def __init__(self, llama: Llama, name: str) -> None:
        self.llama: Llama | None = llama
        self.name = name

    def stream(
        self,
        messages: list[Message],
        settings: Mapping[str, Any],
        statistics: Statistics,
        stop: threading.Event,
    ) -> Iterator[str]:
        assert self.llama is not None
        engine = self.llama.engine
        prompt = self.llama.formatter.encode_dialog_prompt(messages)
        sequence = sequence_of({"seed": secrets.randbits(32), **settings}, prompt)
        statistics.started = time.monotonic()
        engine.add(sequence)
        try:
            for _ in engine.run([sequence]):
                if stop.is_set() and sequence.finish_reason is None:
                    engine.cancel(sequence)
                reason = sequence.finish_reason  # before the text, which may be added to
                if text := sequence.take_text():
                    yield text
                if reason == "error":
                    assert sequence.error is not None
                    raise sequence.error
        finally:
            engine.cancel(sequence)
            statistics.finished = time.monotonic()
            statistics.first_token = sequence.times.get("first_token")
            statistics.prompt_tokens = len(sequence.prompt)
            statistics.cached_tokens = sequence.num_cached_tokens
            statistics.completion_tokens = len(sequence.tokens)
            statistics.seed = sequence.sampler.seed
            statistics.finish_reason = sequence.finish_reason


class ServerError(InputError):
    """What a server refused, or that there is none."""


class ServerModel:
    """A model on an OpenAI-compatible server.

    url: the server's, with /v1 or without.
    model: its name there; the only one that the server has if None.

    The constructor asks the server which models it has. Raises ServerError where it does not
    answer, refuses the key, or does not have the model.
    """

    llama: Llama | None = None

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None) -> None:
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ServerError(f"--url {url}: {error}") from error
        if address.scheme not in ("http", "https") or not address.host:
            raise ServerError(f"--url {url} should begin with http:// or https:// and a host")
        path = address.path.rstrip("/")
        self.url = str(address.copy_with(path=path if path.endswith("/v1") else path + "/v1"))
        self._options: dict[str, Any] = {
            "timeout": _TIMEOUT,
            "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
            # A proxy of the environment is not for this machine.
            "trust_env": address.host not in ("127.0.0.1", "localhost", "::1"),
        }
        names = self._models()
        if model is None and len(names) != 1:
            raise ServerError(
                f"{self.url} has {len(names)} models: {', '.join(names)}; name one with --model"
                if names
                else f"{self.url} has no models"
            )
        if model is not None and names and model not in names:
            raise ServerError(f"{self.url} has no model {model!r}; {nearest(model, names)}")
        self.name = model or names[0]

    def stream(
        self,
        messages: list[Message],
        settings: Mapping[str, Any],
        statistics: Statistics,
        stop: threading.Event,
    ) -> Iterator[str]:
        body = self._body(messages, settings)
        statistics.started = time.monotonic()
        statistics.seed = settings.get("seed")
        with asyncio.Runner() as runner:  # which cancels the reader at the end
            queue: asyncio.Queue[str | Exception | None] = asyncio.Queue()
            reader = runner.get_loop().create_task(self._read(body, queue, statistics))
            try:
                while True:
                    item = runner.run(_next_item(queue, stop))
                    if stop.is_set():
                        statistics.finish_reason = "cancelled"
                        return
                    if item is None:
                        return
                    if isinstance(item, Exception):
                        raise item
                    if statistics.first_token is None:
                        statistics.first_token = time.monotonic()
                    yield item
            finally:
                reader.cancel()
                statistics.finished = time.monotonic()

    def _models(self) -> list[str]:
        try:
            with httpx.Client(**self._options) as client:
                response = client.get(f"{self.url}/models")
        except httpx.HTTPError as error:
            raise self._connection_error(error) from error
        if response.status_code != 200:
            raise self._refusal(response)
        try:
            return [model["id"] for model in response.json()["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ServerError(f"{self.url}/models is not OpenAI's list of models") from error

    def _body(self, messages: list[Message], settings: Mapping[str, Any]) -> dict[str, Any]:
        sampling = {"temperature": DEFAULTS["temperature"], "top_p": DEFAULTS["top_p"], **settings}
        if "max_gen_len" in sampling:
            sampling["max_tokens"] = sampling.pop("max_gen_len")
        if "stop" in sampling:
            sampling["stop"] = list(sampling["stop"])
        if "logit_bias" in sampling:
            sampling["logit_bias"] = {str(k): v for k, v in sampling["logit_bias"].items()}
        return {
            "model": self.name,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **sampling,
        }

    async def _read(
        self,
        body: dict[str, Any],
        queue: asyncio.Queue[str | Exception | None],
        statistics: Statistics,
    ) -> None:
        """Puts the answer's text into `queue`, then None; or what went wrong."""
        try:
            async with (
                httpx.AsyncClient(**self._options) as client,
                client.stream("POST", f"{self.url}/chat/completions", json=body) as response,
            ):
                if response.status_code != 200:
                    await response.aread()
                    raise self._refusal(response)
                async for event in _events(response.aiter_bytes()):
                    if text := self._text_of(event, statistics):
                        queue.put_nowait(text)
            if statistics.finish_reason is None:
                raise ServerError(f"{self.url} closed the stream before the answer's end")
        except httpx.HTTPError as error:
            queue.put_nowait(self._connection_error(error))
        except Exception as error:
            queue.put_nowait(error)
        queue.put_nowait(None)

    def _text_of(self, event: str, statistics: Statistics) -> str:
        try:
            content = json.loads(event)
            if "error" in content:
                raise ServerError(f"{self.url}: {_message(content)}")
            if usage := content.get("usage"):
                details = usage.get("prompt_tokens_details") or {}
                statistics.prompt_tokens = usage.get("prompt_tokens")
                statistics.completion_tokens = usage.get("completion_tokens")
                statistics.cached_tokens = details.get("cached_tokens")
            text = ""
            for choice in content.get("choices") or ():
                statistics.finish_reason = choice.get("finish_reason") or statistics.finish_reason
                text += (choice.get("delta") or {}).get("content") or ""
            return text
        except (json.JSONDecodeError, AttributeError, TypeError) as error:
            raise ServerError(
                f"{self.url} sent what is no chunk of OpenAI's: {event:.200}"
            ) from error

    def _refusal(self, response: httpx.Response) -> ServerError:
        try:
            reason = _message(response.json())
        except ValueError:
            reason = " ".join(response.text.split())[:200] or response.reason_phrase
        hint = ""
        if response.status_code in (401, 403):
            hint = " (the key is --api_key, LLAMA_API_KEY or OPENAI_API_KEY)"
        return ServerError(f"{self.url}: {response.status_code}: {reason}{hint}")

    def _connection_error(self, error: httpx.HTTPError) -> ServerError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return ServerError(
                f"no server answers at {self.url} ({error}); start one with `llama serve`, or "
                "name another --url"
            )
        return ServerError(f"{self.url}: {error or type(error).__name__}")


async def _next_item(
    queue: asyncio.Queue[str | Exception | None], stop: threading.Event
) -> str | Exception | None:
    """The next of `queue`; None soon after `stop` is set."""
    while not stop.is_set():
        try:
            async with asyncio.timeout(_POLL):
                return await queue.get()
        except TimeoutError:
            pass
    return None


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The data of server-sent events up to `[DONE]`.

    https://html.spec.whatwg.org/multipage/server-sent-events.html. Lines are cut at line feeds
    only: JSON may hold other characters that Python, and httpx's `aiter_lines`, take for ends.
    """
    rest, data = b"", list[str]()
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line.removeprefix(b"data:").removeprefix(b" ").decode())
            elif not line and data:
                event, data = "\n".join(data), []
                if event == "[DONE]":
                    return
                yield event


def _message(content: Any) -> str:
    """The text of an error in OpenAI's shape, or near it, on one line."""
    error = content.get("error", content) if isinstance(content, dict) else content
    text = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(text).split())[:500]
