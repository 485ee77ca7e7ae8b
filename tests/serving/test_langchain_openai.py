"""LangChain's OpenAI classes against a real server."""

import json
from typing import Any

import pytest
import tiktoken
import torch
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from openai import BadRequestError
from pydantic import BaseModel, Field

from llama.generation import Llama

QUESTION = "What is 23 * 17?"


@tool
def calculator(expression: str) -> str:
    """Calculates.

    Args:
        expression: What to calculate.
    """
    return str(eval(expression))


class Answer(BaseModel):
    """The answer to a question."""

    number: int = Field(description="The number that was asked for", ge=0, le=999)


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def chat(url: str, request: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model="tiny",
        base_url=f"{url}/v1",
        api_key="none",
        temperature=0,
        max_retries=0,
        max_tokens=60,
        stream_usage=True,
        use_responses_api=request.param,
    )


def test_an_answer_and_a_stream(chat: ChatOpenAI) -> None:
    messages = [("system", "You are a helpful assistant."), ("user", "What is 12 + 30?")]
    answer = chat.invoke(messages)
    assert answer.text == "12 + 30 = 42."
    assert answer.usage_metadata["output_tokens"] == 13
    chunks = list(chat.stream(messages))
    assert "".join(chunk.text for chunk in chunks) == answer.text
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.usage_metadata["total_tokens"] == answer.usage_metadata["total_tokens"]


def test_a_dialog_goes_on(chat: ChatOpenAI) -> None:
    messages: list[Any] = [HumanMessage("Hello! My name is Tom.")]
    messages += [chat.invoke(messages), HumanMessage("What is my name?")]
    assert "Tom" in chat.invoke(messages).text


@pytest.mark.parametrize("streams", [False, True])
def test_tools(chat: ChatOpenAI, streams: bool) -> None:
    bound = chat.bind_tools([calculator])
    messages: list[Any] = [HumanMessage(QUESTION)]
    if streams:
        chunks = list(bound.stream(messages))
        answer: Any = chunks[0]
        for chunk in chunks[1:]:
            answer += chunk
    else:
        answer = bound.invoke(messages)
    assert isinstance(answer, AIMessage)
    (call,) = answer.tool_calls
    assert call["name"] == "calculator"
    result = calculator.invoke(call)
    assert isinstance(result, ToolMessage)
    messages += [answer, result]
    assert bound.invoke(messages).text == "23 * 17 = 391."


def test_structured_output(chat: ChatOpenAI) -> None:
    structured = chat.with_structured_output(Answer, method="json_schema", include_raw=True)
    answer: Any = structured.invoke(f"{QUESTION} Answer in JSON.")
    assert isinstance(answer["parsed"], Answer)
    structured = chat.with_structured_output(Answer, method="json_mode", include_raw=True)
    answer = structured.invoke('Say this: {"number": 391}')  # any object; the model ends this one
    assert isinstance(json.loads(answer["raw"].text), dict)


def test_text_completions(url: str, llama: Llama) -> None:
    model = OpenAI(
        model="tiny", base_url=f"{url}/v1", api_key="none", temperature=0, top_p=1, max_tokens=12
    )
    (expected,) = llama.text_completion(["Once upon a time"], 0, 1, max_gen_len=12)
    assert model.invoke("Once upon a time") == expected["generation"]
    assert "".join(model.stream("Once upon a time")) == expected["generation"]


def embeddings(url: str, **settings: Any) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(
        model="tiny", base_url=f"{url}/v1", api_key="none", max_retries=0, **settings
    )


def test_embeddings(url: str, llama: Llama) -> None:
    texts = ["A dog ran.", "A cat slept."]
    model = embeddings(url, check_embedding_ctx_length=False)
    vectors = torch.tensor(model.embed_documents(texts), dtype=torch.float32)
    assert torch.equal(vectors, llama.embed(texts))
    assert torch.equal(torch.tensor(model.embed_query(texts[0])), vectors[0])


def test_another_tokenizers_ids_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_only = tiktoken.Encoding(
        "bytes",
        pat_str=r"[\s\S]",
        mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={},
    )

    def encoding(name: str) -> tiktoken.Encoding:
        raise KeyError(name)

    monkeypatch.setattr(tiktoken, "encoding_for_model", encoding)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: bytes_only)
    with pytest.raises(BadRequestError, match="check_embedding_ctx_length=False"):
        embeddings(url).embed_query("A dog ran.")


def test_log_probabilities(url: str) -> None:
    model = ChatOpenAI(model="tiny", base_url=f"{url}/v1", api_key="none", temperature=0)
    answer = model.bind(logprobs=True, top_logprobs=2).invoke("What is 12 + 30?")
    content = answer.response_metadata["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == answer.text
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)


def test_what_is_wrong_is_an_error(url: str) -> None:
    model = ChatOpenAI(
        model="tiny", base_url=f"{url}/v1", api_key="none", reasoning_effort="low", max_retries=0
    )
    with pytest.raises(BadRequestError, match="reasoning_effort"):
        model.invoke(json.dumps("Hi"))
