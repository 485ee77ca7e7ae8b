"""Names of models that something else than a model answers."""

from collections.abc import AsyncGenerator, Iterator
from typing import Any

import openai
import pytest

from llama.serving.answers import ChatDelta, ChatMessage, ChatRequest, Usage, whole_message
from llama.serving.registry import ModelRegistry
from llama.tool_calls import TextDelta


class Echo:
    tokenizer = None
    usage = Usage(3, 2, 1)

    def __init__(self, request: ChatRequest) -> None:
        self.request = request

    async def deltas(self) -> AsyncGenerator[ChatDelta, None]:
        for word in self.request.messages[-1]["content"].split():
            yield ChatDelta(0, [TextDelta(word)], [], None)
        yield ChatDelta(0, [], [], "stop")

    async def messages(self) -> list[ChatMessage]:
        return [whole_message([delta async for delta in self.deltas()])]


@pytest.fixture(autouse=True)
def echo(models: ModelRegistry) -> Iterator[None]:
    models.chats["echo"] = Echo
    yield
    del models.chats["echo"]


QUESTION: list[Any] = [{"role": "user", "content": "one two"}]


def test_it_answers_whole_and_in_a_stream(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=QUESTION)
    assert answer.choices[0].message.content == "onetwo"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5
    chunks = client.chat.completions.create(model="echo", messages=QUESTION, stream=True)
    deltas = [chunk.choices[0].delta.content for chunk in chunks]
    assert deltas == ["", "one", "two", None]


def test_it_is_among_the_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "echo"]
    assert client.models.retrieve("echo").id == "echo"


def test_what_it_does_not_have_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="logprobs: the answers of echo have none"):
        client.chat.completions.create(model="echo", messages=QUESTION, logprobs=True)
    with pytest.raises(openai.BadRequestError, match="'echo' is no model"):
        client.completions.create(model="echo", prompt="one")
    with pytest.raises(openai.NotFoundError, match="there are tiny, echo"):
        client.completions.create(model="ech", prompt="one")
