"""Names of models that something else than a model answers, in every dialect."""

from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from llama.serving.answers import ChatDelta, ChatMessage, ChatRequest, Usage, whole_message
from llama.serving.registry import ModelRegistry
from llama.tool_calls import TextDelta


class Echo:
    """Says the words of the last message, up to the first stop string."""

    tokenizer = None
    usage = Usage(3, 2, 1)
    times: Mapping[str, float] = {}

    def __init__(self, request: ChatRequest) -> None:
        self.request = request

    async def deltas(self) -> AsyncGenerator[ChatDelta, None]:
        stop = self.request.settings.get("stop", [])
        for word in self.request.messages[-1]["content"].split():
            if word in stop:
                yield ChatDelta(0, [], [], "stop", word)
                return
            yield ChatDelta(0, [TextDelta(word)], [], None)
        yield ChatDelta(0, [], [], "length" if self.request.max_tokens else "stop")

    async def messages(self) -> list[ChatMessage]:
        return [whole_message([delta async for delta in self.deltas()])]


@pytest.fixture(autouse=True)
def echo(models: ModelRegistry) -> Iterator[None]:
    models.chats["echo"] = Echo
    yield
    del models.chats["echo"]


@pytest.fixture
def claude(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)


@pytest.fixture
def ollama_client(url: str) -> ollama.Client:
    return ollama.Client(url)


QUESTION: list[Any] = [{"role": "user", "content": "one two"}]


def test_it_answers_whole_and_in_a_stream(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=QUESTION)
    assert answer.choices[0].message.content == "onetwo"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5
    chunks = client.chat.completions.create(model="echo", messages=QUESTION, stream=True)
    deltas = [chunk.choices[0].delta.content for chunk in chunks]
    assert deltas == ["", "one", "two", None]


def test_responses(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="echo", input="one two")
    assert (whole.output_text, whole.status) == ("onetwo", "completed")
    assert whole.usage is not None
    assert whole.usage.total_tokens == 5
    stream = client.responses.create(model="echo", input="one two", stream=True)
    deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert deltas == ["one", "two"]


def test_messages_of_anthropic(claude: anthropic.Anthropic) -> None:
    body: dict[str, Any] = {"model": "echo", "max_tokens": 9, "messages": QUESTION}
    whole = claude.messages.create(**body)
    assert whole.content[0].text == "onetwo"
    assert whole.stop_reason == "model_context_window_exceeded"  # 2 tokens, of 9
    assert whole.usage.output_tokens == 2
    assert (whole.usage.input_tokens, whole.usage.cache_read_input_tokens) == (2, 1)
    assert claude.messages.create(**body | {"max_tokens": 2}).stop_reason == "max_tokens"
    with claude.messages.stream(**body, stop_sequences=["two"]) as stream:
        assert list(stream.text_stream) == ["one"]
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "two")
    assert final.usage.output_tokens == 2


@pytest.mark.parametrize("name", ["echo", "echo:latest"])
def test_chat_and_generate_of_ollama(ollama_client: ollama.Client, name: str) -> None:
    whole = ollama_client.chat(name, QUESTION)
    assert (whole.message.content, whole.done_reason) == ("onetwo", "stop")
    assert (whole.prompt_eval_count, whole.eval_count) == (3, 2)
    assert whole.eval_duration > 0
    assert whole.total_duration >= whole.eval_duration
    lines = [*ollama_client.chat(name, QUESTION, stream=True)]
    assert [line.message.content for line in lines] == ["one", "two", ""]
    assert (lines[-1].done, lines[-1].eval_count) == (True, 2)
    assert ollama_client.generate(name, "one two").response == "onetwo"
    parts = ollama_client.generate(name, "one two", options={"num_predict": 5}, stream=True)
    *_, last = parts
    assert last.done_reason == "length"
    assert ollama_client.generate(name).done_reason == "load"  # there is nothing to load
    assert ollama_client.generate(name, keep_alive=0).done_reason == "unload"


def test_it_is_among_the_models(client: openai.OpenAI, ollama_client: ollama.Client) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "echo"]
    assert client.models.retrieve("echo").id == "echo"
    tiny, echo = ollama_client.list().models
    assert (tiny.model, echo.model, echo.size) == ("tiny:latest", "echo:latest", 0)
    assert len(bytes.fromhex(echo.digest)) == 32
    for name in ("echo", "echo:latest"):
        shown = ollama_client.show(name)
        assert (shown.capabilities, shown.modelinfo) == (["completion"], {})
    assert [model.model for model in ollama_client.ps().models] == ["tiny:latest"]


def test_what_it_does_not_have_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="logprobs: the answers of echo have none"):
        client.chat.completions.create(model="echo", messages=QUESTION, logprobs=True)
    with pytest.raises(openai.BadRequestError, match="'echo' is no model"):
        client.completions.create(model="echo", prompt="one")
    with pytest.raises(openai.NotFoundError, match="there are tiny, echo"):
        client.completions.create(model="ech", prompt="one")


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/api/chat", {"messages": QUESTION, "logprobs": True}, "logprobs: the answers of echo"),
        ("/api/chat", {"messages": QUESTION, "options": {"num_ctx": 64}}, "options.num_ctx: the"),
        ("/api/generate", {"prompt": "one", "raw": True}, "raw: the answers of echo have none"),
        ("/api/embed", {"input": "one"}, "'echo' is no model of its own; it answers chats alone"),
        ("/v1/messages/count_tokens", {"messages": QUESTION}, "'echo' is no model"),
        ("/v1/embeddings", {"input": "one"}, "'echo' is no model"),
        ("/v1/rerank", {"query": "one", "documents": ["two"]}, "'echo' is no model"),
        ("/tokenize", {"content": "one"}, "'echo' is no model"),
        ("/apply-template", {"messages": QUESTION}, "'echo' is no model"),
    ],
)
def test_what_only_a_model_has_is_refused_by_name(
    url: str, path: str, body: dict[str, Any], reason: str
) -> None:
    response = httpx.post(url + path, json={"model": "echo", **body})
    assert response.status_code == 400
    assert reason in response.text
