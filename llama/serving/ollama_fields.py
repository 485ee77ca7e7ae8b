"""What the bodies of Ollama's routes have in common: options, formats, durations, model names.

https://github.com/ollama/ollama/blob/main/docs/api.md and its Modelfile's parameters. An option of
another sampler or of a smaller context is refused unless it is off; one that only says how Ollama
places a model in memory changes no answer, and is accepted.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from llama.engine.grammar import Grammar
from llama.engine.request import Sequence
from llama.errors import ContextLengthError
from llama.serving.http_errors import HttpError
from llama.serving.registry import ServedModel
from llama.serving.wire import StrictModel

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")  # one of Go's
_LAST_SECOND = 253402300799
_SAMPLING = {  # Ollama's name to Llama's
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
}


class Options(StrictModel):
    """Settings of an answer; those that are not there have Llama's defaults, as everywhere.

    num_ctx: the most tokens of the prompt and the answer; a longer prompt is an error.
    num_predict: the most tokens of the answer; a negative number is no limit.
    """

    num_ctx: int | None = Field(None, ge=1)
    num_predict: int | None = Field(None, ge=-2)
    temperature: float | None = Field(None, ge=0)
    top_k: int | None = Field(None, ge=-1)
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    # Of the penalties: they look at the whole prompt and answer here, line breaks included.
    repeat_last_n: int | None = Field(None, ge=-1)
    penalize_newline: Literal[True] | None = None
    # Other samplers, which have to be off.
    mirostat: Literal[0] | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    tfs_z: Annotated[float, Field(ge=1, le=1)] | None = None
    typical_p: Annotated[float, Field(ge=1, le=1)] | None = None
    # Nothing is cut from the beginning of a prompt, so nothing has to be kept of it.
    num_keep: int | None = None
    # Where and how a model is loaded is a setting of the server.
    numa: bool | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    num_thread: int | None = None
    logits_all: Literal[False] | None = None
    vocab_only: Literal[False] | None = None
    embedding_only: Literal[False] | None = None

    def settings(self) -> dict[str, Any]:
        """Those of sampling that were set, as `Llama` takes them."""
        given = {theirs: getattr(self, theirs) for theirs in _SAMPLING}
        settings = {_SAMPLING[theirs]: v for theirs, v in given.items() if v is not None}
        if settings.get("top_k") == -1:  # off
            settings["top_k"] = 0
        is_penalized = settings.get("repetition_penalty", 1.0) != 1.0
        if is_penalized and self.repeat_last_n not in (None, -1):
            raise HttpError(
                400,
                "options.repeat_last_n: repeat_penalty looks at the whole prompt and answer; "
                f"leave it out or set it to -1, got {self.repeat_last_n}",
            )
        return settings

    @property
    def max_tokens(self) -> int | None:
        """The most tokens of the answer; None for no limit."""
        return None if self.num_predict is None or self.num_predict < 0 else self.num_predict

    def limit(self, sequence: Sequence, served: ServedModel) -> None:
        """Lets a request and its answer have `num_ctx` tokens, or raises InputError."""
        size = len(sequence.prompt)
        if self.num_ctx is None:
            return
        if self.num_ctx > served.max_model_len:
            raise HttpError(
                400,
                f"options.num_ctx is {self.num_ctx}, but the context of {served.name} is "
                f"{served.max_model_len} tokens",
            )
        if size > self.num_ctx:
            raise ContextLengthError(
                "the prompt", size, self.num_ctx, f"options.num_ctx is {self.num_ctx}"
            )
        room = self.num_ctx - size
        wanted = sequence.max_gen_len
        sequence.max_gen_len = room if wanted is None else min(wanted, room)


class ModelFields(StrictModel):
    """A model, and how long it stays loaded after the request: seconds or 5m, -1 for ever."""

    model: str = Field(min_length=1)
    keep_alive: float | str | None = None

    @property
    def seconds_alive(self) -> float | None:
        """`keep_alive` in seconds; a negative number is forever, None the server's own."""
        if self.keep_alive is None or not isinstance(self.keep_alive, str):
            return self.keep_alive
        return _seconds(self.keep_alive)


class NamedModel(StrictModel):
    """A model, which older clients call `name`."""

    model: str | None = None
    name: str | None = None

    @property
    def named(self) -> str:
        """Its name. Raises HttpError where there is none, or two."""
        names = {self.model, self.name} - {None, ""}
        if len(names) != 1:
            raise HttpError(400, "model: give the name of one model")
        (name,) = names
        assert name is not None
        return name


class GenerationFields(ModelFields):
    """What chat and completions share."""

    stream: bool | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: Options | None = None
    think: Literal[False] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    truncate: bool | None = None  # prompts are never cut: one that is too long is an error
    shift: bool | None = None  # nor are they when an answer reaches the end of the context

    @property
    def given_options(self) -> Options:
        """The options, of which there may be none."""
        return self.options or Options.model_validate({})

    def settings(self) -> dict[str, Any]:
        """Sampling and grammar, as `Llama` takes them."""
        settings = self.given_options.settings()
        if self.format:
            schema = {"type": "object"} if self.format == "json" else self.format
            settings["grammar"] = Grammar(json_schema=schema)
        if self.top_logprobs:
            if not self.logprobs:
                raise HttpError(400, "top_logprobs needs logprobs: true")
            settings["top_logprobs"] = self.top_logprobs
        return settings


def _seconds(text: str) -> float:
    """A duration as Go writes it: 5m, 1h30m, 1.5s, -1m; without a unit it is in seconds."""
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text.lstrip("+-")
    if re.fullmatch(r"\d+(\.\d*)?", rest):
        return sign * float(rest)
    if not rest or _DURATION.sub("", rest):
        raise HttpError(
            400, f"keep_alive: {text[:50]!r} is no duration; write 300, '5m', '1h30m' or -1"
        )
    return sign * sum(float(n) * _SECONDS[unit] for n, unit in _DURATION.findall(rest))


def timestamp(seconds: float) -> str:
    """A time since the epoch in UTC; the last second of the year 9999 for one after it."""
    return (
        datetime.fromtimestamp(min(seconds, _LAST_SECOND), UTC).isoformat().replace("+00:00", "Z")
    )


class ErrorBody(BaseModel):
    """Ollama's shape of an error."""

    error: str


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is wrong"},
    "5XX": {"model": ErrorBody, "description": "The server can't answer"},
}
