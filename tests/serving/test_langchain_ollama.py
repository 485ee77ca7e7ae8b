"""LangChain's classes for Ollama: chat, streams, tools, structured output, embeddings."""

import asyncio
from typing import Any

import ollama
import pytest
import torch
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from pydantic import BaseModel

from llama.generation import Llama


def chat(url: str, **settings: Any) -> ChatOllama:
    return ChatOllama(
        model="tiny", base_url=url, temperature=0, validate_model_on_init=True, **settings
    )


@tool
def calculator(expression: str) -> str:
    """Evaluates an arithmetic expression."""
    left, right = expression.split("*")
    return str(int(left) * int(right))


def test_a_chat(url: str) -> None:
    answer = chat(url).invoke([SystemMessage("Be brief."), HumanMessage("What is 12 + 30?")])
    assert answer.content == "12 + 30 = 42."
    assert answer.response_metadata["done_reason"] == "stop"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 13
    cut = chat(url, num_predict=3, num_ctx=512, keep_alive="5m", top_k=40, repeat_penalty=1.0)
    answer = cut.invoke("What is 12 + 30?", stop=["="])
    assert answer.response_metadata["done_reason"] == "length"


def test_a_stream(url: str) -> None:
    chunks = list(chat(url).stream("What is 12 + 30?"))
    assert len(chunks) > 2
    assert "".join(str(chunk.content) for chunk in chunks) == "12 + 30 = 42."

    async def astream() -> str:
        return "".join([str(chunk.content) async for chunk in chat(url).astream("Hi!")])

    assert asyncio.run(astream()) == chat(url).invoke("Hi!").content


def test_tools_through_to_the_final_answer(url: str) -> None:
    model = chat(url).bind_tools([calculator])
    question = HumanMessage("What is 23 * 17?")
    answer = model.invoke([question])
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("calculator", {"expression": "23 * 17"})
    result = calculator.invoke(call)
    assert isinstance(result, ToolMessage)
    assert model.invoke([question, answer, result]).content == "23 * 17 = 391."
    streamed = AIMessageChunk("")
    for chunk in model.stream([question]):
        assert isinstance(chunk, AIMessageChunk)
        streamed = streamed + chunk
    assert [(c["name"], c["args"]) for c in streamed.tool_calls] == [(call["name"], call["args"])]


class Sum(BaseModel):
    """A sum."""

    result: int


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(url: str, method: Any) -> None:
    model = chat(url, num_predict=60).with_structured_output(Sum, method=method, include_raw=True)
    answer = model.invoke("What is 12 + 30?")
    if method == "json_schema":
        assert isinstance(answer["parsed"], Sum)
    else:  # the model is free not to call
        assert answer["raw"].response_metadata["done"]
    text = chat(url, num_predict=60, format="json").invoke("What is 12 + 30?").content
    assert str(text).lstrip().startswith("{")


def test_a_completion(url: str) -> None:
    assert OllamaLLM(model="tiny", base_url=url, temperature=0).invoke("What is 12 + 30?") == (
        "12 + 30 = 42."
    )


def test_embeddings(url: str, llama: Llama) -> None:
    texts = ["A dog ran in the park.", "12 + 30 = 42."]
    model = OllamaEmbeddings(model="tiny", base_url=url)
    expected = llama.embed(texts)
    assert torch.equal(torch.tensor(model.embed_documents(texts)), expected)
    assert torch.equal(torch.tensor(model.embed_query(texts[1])), expected[1])


def test_errors(url: str) -> None:
    with pytest.raises(ValueError, match="not found in Ollama"):
        ChatOllama(model="big", base_url=url, validate_model_on_init=True)
    with pytest.raises(ollama.ResponseError, match=r"options\.mirostat"):
        chat(url, mirostat=2).invoke("Hi!")
    with pytest.raises(ollama.ResponseError, match="think"):
        chat(url, reasoning=True).invoke("Hi!")
