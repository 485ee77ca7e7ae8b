"""The answers of OpenAI's responses: an object that grows, and the events that tell how.

https://platform.openai.com/docs/api-reference/responses-streaming. The models declare the shapes
for the OpenAPI description; what is sent is not validated again.
"""

import uuid
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel

from llama.serving.answers import ChatDelta, Usage
from llama.serving.http_errors import HttpError
from llama.serving.openai_chat_answers import TokenLogprob, token_logprobs
from llama.serving.wire import server_sent_event
from llama.tokenizer import Tokenizer
from llama.tool_calls import CallArguments, CallStart, TextDelta

Status = Literal["in_progress", "completed", "incomplete"]


class OutputTextPart(BaseModel):
    """Text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: list[TokenLogprob]


class OutputMessage(BaseModel):
    """A message of the assistant."""

    type: Literal["message"]
    id: str
    status: Status
    role: Literal["assistant"]
    content: list[OutputTextPart]


class OutputFunctionCall(BaseModel):
    """A call of a function; `arguments` are JSON."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class IncompleteDetails(BaseModel):
    """Why an answer is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponseError(BaseModel):
    """Why an answer failed."""

    code: str
    message: str


class InputTokensDetails(BaseModel):
    """How many of the prompt's tokens came from the prefix store."""

    cached_tokens: int


class OutputTokensDetails(BaseModel):
    """These models do not reason apart from the answer."""

    reasoning_tokens: Literal[0]


class ResponseUsage(BaseModel):
    """Counts of tokens."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseObject(BaseModel):
    """An answer, with the settings that were asked for."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage | OutputFunctionCall]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: None
    store: Literal[False]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None


class ResponseWriter:
    """Makes a response of an answer's deltas, and the server-sent event of each change."""

    def __init__(self, response: dict[str, Any]) -> None:
        self.response = response
        self._tokenizer: Tokenizer | None = None
        self._num_events = 0
        self._item: dict[str, Any] | None = None  # the last of the output, if it still grows
        self._logprobs: list[dict[str, Any]] = []  # of tokens whose text is still to come

    def begin(self, tokenizer: Tokenizer | None = None) -> Iterator[str]:
        """The first events; with a tokenizer later ones have log-probabilities."""
        self._tokenizer = tokenizer
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)

    def add(self, delta: ChatDelta) -> Iterator[str]:
        """What a delta adds."""
        if self._tokenizer is not None:
            self._logprobs += token_logprobs(delta.tokens, self._tokenizer)
        for event in delta.events:
            if isinstance(event, TextDelta):
                if self._item is None or self._item["type"] != "message":
                    yield from self._begin_message()
                yield from self._add_text(event.text)
            elif isinstance(event, CallStart):
                self._logprobs = []  # the call's own
                yield from self._end_item("completed")
                yield from self._begin_item(
                    type="function_call",
                    id=f"fc_{uuid.uuid4().hex}",
                    call_id=event.id,
                    name=event.name,
                    arguments="",
                )
            elif isinstance(event, CallArguments):
                assert self._item is not None
                self._item["arguments"] += event.delta
                yield self._item_event("response.function_call_arguments.delta", delta=event.delta)
            else:  # the end of a call, which broke off or is malformed if there is none
                yield from self._end_item("incomplete" if event.call is None else "completed")

    def end(self, is_complete: bool, usage: Usage, time: int) -> Iterator[str]:
        """The last events; an answer without output gets an empty message."""
        response, status = self.response, "completed" if is_complete else "incomplete"
        if not response["output"]:
            yield from self._begin_message()
        yield from self._end_item(status)
        response |= {"status": status, "completed_at": time if is_complete else None}
        if not is_complete:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        response["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        yield self._event(f"response.{status}", response=response)

    def fail(self, error: HttpError) -> str:
        """The last events of a response that failed. OpenAI's clients raise the second."""
        body = error.body("/responses")["error"]
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        details = {"code": code, "message": error.message}
        self.response |= {"status": "failed", "error": details}
        failed = self._event("response.failed", response=self.response)
        fields = {"code": error.code or code, "message": error.message, "param": error.param}
        return failed + self._event("error", **fields, error=body)

    def _begin_message(self) -> Iterator[str]:
        yield from self._end_item("completed")
        yield from self._begin_item(
            type="message", id=f"msg_{uuid.uuid4().hex}", role="assistant", content=[]
        )
        part: dict[str, Any] = {
            "type": "output_text",
            "text": "",
            "annotations": [],
            "logprobs": [],
        }
        assert self._item is not None
        self._item["content"].append(part)
        yield self._item_event("response.content_part.added", content_index=0, part=part)

    def _add_text(self, text: str) -> Iterator[str]:
        assert self._item is not None
        (part,) = self._item["content"]
        part["text"] += text
        logprobs, self._logprobs = self._logprobs, []
        part["logprobs"] += logprobs
        yield self._item_event(
            "response.output_text.delta", content_index=0, delta=text, logprobs=logprobs
        )

    def _begin_item(self, **item: Any) -> Iterator[str]:
        self._item = {**item, "status": "in_progress"}
        self.response["output"].append(self._item)
        yield self._output_event("response.output_item.added")

    def _end_item(self, status: str) -> Iterator[str]:
        item = self._item
        if item is None:
            return
        if item["type"] == "message":
            (part,) = item["content"]
            part["logprobs"] += self._logprobs
            self._logprobs = []
            fields = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._item_event("response.output_text.done", content_index=0, **fields)
            yield self._item_event("response.content_part.done", content_index=0, part=part)
        else:
            self._logprobs = []
            fields = {"name": item["name"], "arguments": item["arguments"]}
            yield self._item_event("response.function_call_arguments.done", **fields)
        item["status"] = status
        yield self._output_event("response.output_item.done")
        self._item = None

    def _output_event(self, kind: str) -> str:
        return self._event(kind, output_index=len(self.response["output"]) - 1, item=self._item)

    def _item_event(self, kind: str, **fields: Any) -> str:
        assert self._item is not None
        index = len(self.response["output"]) - 1
        return self._event(kind, item_id=self._item["id"], output_index=index, **fields)

    def _event(self, kind: str, **fields: Any) -> str:
        number, self._num_events = self._num_events, self._num_events + 1
        return server_sent_event({"type": kind, "sequence_number": number, **fields}, event=kind)
