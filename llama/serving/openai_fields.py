"""What the bodies of OpenAI's routes have in common: sampling, formats of answers, errors, usage.

The fields are OpenAI's, and those that local servers add: `top_k`, `min_p`, `repetition_penalty`,
`min_tokens`, `ignore_eos`, `priority` and `structured_outputs`, as vLLM has them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from llama.engine.grammar import Grammar
from llama.engine.request import Sequence
from llama.serving.answers import Usage
from llama.serving.http_errors import HttpError
from llama.serving.wire import StrictModel


class StreamOptions(StrictModel):
    """What a stream also carries."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class JsonSchema(StrictModel):
    """A named schema."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextFormat(StrictModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(StrictModel):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(StrictModel):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StructuredOutputs(StrictModel):
    """What an answer has to match, one of: vLLM's extension. A grammar is in Lark's syntax."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1)
    grammar: str | None = None
    json_object: bool | None = None


class SamplingFields(StrictModel):
    """The settings that all routes share; null is the default."""

    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    priority: int | None = None

    def sampling(self) -> dict[str, Any]:
        """Those that were set, as `Llama` takes them."""
        names = SamplingFields.model_fields
        settings = {k: v for k in names if (v := getattr(self, k)) is not None}
        if settings.get("top_k") == -1:  # off, in vLLM
            settings["top_k"] = 0
        if "priority" in settings:  # in vLLM the lowest is first
            settings["priority"] = -settings["priority"]
        if "logit_bias" in settings:
            settings["logit_bias"] = _token_biases(settings["logit_bias"])
        return settings


class GenerationFields(SamplingFields):
    """What chat and text completions share besides: streams, and formats of answers."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    n: int | None = Field(None, ge=1, le=128)
    user: str | None = None  # has no effect on an answer

    @property
    def streams_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def settings(self) -> dict[str, Any]:
        """Sampling and grammar, as `Llama` takes them. Raises HttpError for conflicting fields."""
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "it needs stream: true")
        settings = self.sampling()
        if self.n is not None:
            settings["n"] = self.n
        if self.structured_outputs is not None:
            if self.response_format is not None and self.response_format.type != "text":
                raise wrong("structured_outputs", "give it or response_format, not both")
            settings["grammar"] = _structured(self.structured_outputs)
        elif self.response_format is not None:
            settings["grammar"] = _formatted(self.response_format)
        return settings


def wrong(param: str, reason: str) -> HttpError:
    """The error for a field whose value can't be honoured."""
    return HttpError(400, f"{param}: {reason}", param=param, code="invalid_value")


def _token_biases(biases: dict[str, float]) -> dict[int, float]:
    """OpenAI's logit_bias, whose keys are token ids as strings."""
    for token in biases:
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise wrong("logit_bias", f"{token[:50]!r} is no token id")
    return {int(token): bias for token, bias in biases.items()}


def _formatted(response_format: ResponseFormat) -> Grammar | None:
    if isinstance(response_format, JsonSchemaFormat):
        return Grammar(json_schema=response_format.json_schema.schema_)
    if isinstance(response_format, JsonObjectFormat):
        return Grammar(json_schema={"type": "object"})
    return None


def _structured(outputs: StructuredOutputs) -> Grammar:
    given = [name for name, value in outputs if value is not None and value is not False]
    if len(given) != 1:
        raise wrong(
            "structured_outputs",
            "give one of json, regex, choice, grammar and json_object, got "
            + (" and ".join(name.rstrip("_") for name in given) or "none"),
        )
    if outputs.json_object:
        return Grammar(json_schema={"type": "object"})
    return Grammar(
        json_schema=outputs.json_, regex=outputs.regex, choice=outputs.choice, lark=outputs.grammar
    )


class PromptTokensDetails(BaseModel):
    """How many of the prompt's tokens came from the prefix store."""

    cached_tokens: int


class PromptUsage(BaseModel):
    """How many tokens the model read, where it writes none."""

    prompt_tokens: int
    total_tokens: int


def prompt_usage(sequences: list[Sequence]) -> dict[str, int]:
    """The counts of requests that generate nothing."""
    tokens = Usage.of(sequences).prompt_tokens
    return {"prompt_tokens": tokens, "total_tokens": tokens}


class OpenAIUsage(BaseModel):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


def openai_usage(usage: Usage) -> dict[str, Any]:
    """Counts of tokens, with those of the prompt that came from the prefix store."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


class ErrorDetail(BaseModel):
    """What was wrong, and in which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's shape of an error."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is wrong"},
    "5XX": {"model": ErrorBody, "description": "The server can't answer"},
}


def streamed(whole: type[BaseModel], chunk: str) -> dict[int | str, dict[str, Any]]:
    """How the OpenAPI description declares an answer that comes whole or as events."""
    data = {"type": "string", "description": chunk}
    events = {"schema": {"type": "object", "properties": {"data": data}}}  # of each event
    return {
        200: {
            "model": whole,
            "description": "The answer, or with `stream` its events",
            "content": {"text/event-stream": events},
        }
    }
