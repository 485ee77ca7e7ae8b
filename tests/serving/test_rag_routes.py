"""Indexes over HTTP: their own routes, and as models of every dialect's clients."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest
from serving.conftest import TINY, running

from llama.errors import InputError
from llama.retrieval import Index
from llama.serving.answers import ChatRequest
from llama.serving.app import create_app
from llama.serving.rag_answers import RagAnswer, ServedIndex
from llama.serving.registry import ModelRegistry

FACTS = {
    "people": "Mia lives in Oslo. Tom lives in Fairhaven.",
    "museum": "The museum opens at 10:15. The ticket costs 14 dollars.",
    "pool": "The pool opens at 8:00.",
}
QUESTION = "When does the museum open?"
ANSWER = "The museum opens at 10:15. [1]\n\n[1] museum, characters 0 to 55"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    with Index.open(tmp_path_factory.mktemp("rag") / "notes.db", TINY) as index:
        index.add(FACTS)
        yield index


@pytest.fixture(scope="module")
def registry() -> Iterator[ModelRegistry]:
    registry = ModelRegistry({"tiny": TINY}, keep_alive=-1, device="cpu")
    registry.load("tiny")
    yield registry
    registry.close()


@pytest.fixture(scope="module")
def rag(index: Index, registry: ModelRegistry) -> Iterator[httpx.Client]:
    with (
        running(create_app(registry, indexes={"notes": index})) as url,
        httpx.Client(base_url=f"{url}/v1", timeout=60) as client,
    ):
        yield client


@pytest.fixture
def chat(rag: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=str(rag.base_url), api_key="none", max_retries=0)


def test_an_index_is_a_model_of_openais_client(chat: openai.OpenAI) -> None:
    assert [model.id for model in chat.models.list()] == ["tiny", "rag:notes"]
    messages = [{"role": "user", "content": QUESTION}]
    whole = chat.chat.completions.create(model="rag:notes", messages=messages)
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens > 0
    stream = chat.chat.completions.create(model="rag:notes", messages=messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER
    response = chat.responses.create(model="rag:notes", input=QUESTION)
    assert response.output_text == ANSWER


def test_an_index_is_a_model_of_anthropics_client(rag: httpx.Client) -> None:
    client = anthropic.Anthropic(base_url=str(rag.base_url.join("/")), api_key="none")
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    for max_tokens in (100, 5000):  # the passages have room beside any of these
        whole = client.messages.create(model="rag:notes", max_tokens=max_tokens, messages=messages)
        assert (whole.content[0].text, whole.stop_reason) == (ANSWER, "end_turn")
    body: dict[str, Any] = {"model": "rag:notes", "max_tokens": 100, "messages": messages}
    with client.messages.stream(**body) as stream:
        assert "".join(stream.text_stream) == ANSWER
        assert stream.get_final_message().usage.output_tokens == whole.usage.output_tokens > 0
    stopped = client.messages.create(**body, stop_sequences=["opens"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "opens")
    with pytest.raises(anthropic.BadRequestError, match="tools: answers from documents"):
        client.messages.create(**body, tools=[{"name": "f", "input_schema": {"type": "object"}}])


def test_an_index_is_a_model_of_ollamas_client(rag: httpx.Client) -> None:
    client = ollama.Client(str(rag.base_url.join("/")))
    assert [model.model for model in client.list().models] == ["tiny:latest", "rag:notes"]
    assert client.show("rag:notes").capabilities == ["completion"]
    messages = [{"role": "user", "content": QUESTION}]
    assert client.chat("rag:notes", messages).message.content == ANSWER
    lines = client.chat("rag:notes", messages, stream=True)
    assert "".join(line.message.content or "" for line in lines) == ANSWER
    assert client.generate("rag:notes", QUESTION).response == ANSWER
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with pytest.raises(ollama.ResponseError, match="tools: answers from documents"):
        client.chat("rag:notes", messages, tools=[tool])
    with pytest.raises(ollama.ResponseError, match="format: answers from documents"):
        client.chat("rag:notes", messages, format="json")


def test_what_is_not_in_the_documents_is_said(chat: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Where does Nora live?"}]
    whole = chat.chat.completions.create(model="rag:notes", messages=messages)
    assert whole.choices[0].message.content == "Not in the documents."


def test_what_answers_from_documents_do_not_have_is_refused(chat: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    for fields, param in (
        ({"n": 2}, "n"),
        ({"tools": [tool]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "format"),
    ):
        with pytest.raises(openai.BadRequestError, match=param):
            chat.chat.completions.create(model="rag:notes", messages=messages, **fields)


def test_search_and_ask_are_those_of_python(rag: httpx.Client, index: Index) -> None:
    for rerank in (None, "likelihood", "attention", "yes_no"):
        body = {"question": QUESTION, "k": 2, "rerank": rerank}
        hits = rag.post("/rag/search", json=body).json()["hits"]
        expected = index.search(QUESTION, 2, rerank)
        assert [(h["source"], h["score"]) for h in hits] == [(h.source, h.score) for h in expected]
    asked = rag.post("/rag/ask", json={"question": QUESTION, "index": "notes"}).json()
    expected = index.answer(QUESTION)
    assert (asked["text"], asked["is_found"]) == (expected.text, True)
    assert [hit["source"] for hit in asked["sources"]] == ["museum"]
    support = asked["sentences"][0]["supports"][0]
    assert support["drop"] == expected.sentences[0].supports[0].drop


def test_explain_is_that_of_python(rag: httpx.Client, index: Index) -> None:
    body = {"question": QUESTION, "k": 1, "rerank": "likelihood", "max_tokens": 20}
    found = rag.post("/rag/explain", json=body).json()
    expected = index.explain(QUESTION, 1, "likelihood", max_gen_len=20)
    assert found == json.loads(json.dumps(asdict(expected)))
    assert [stage["name"] for stage in found["stages"]] == ["BM25", "likelihood"]
    assert found["prompt"].count("The museum opens at 10:15.") == 1


def test_documents_come_change_and_go(rag: httpx.Client) -> None:
    def add(**texts: str) -> dict[str, list[str]]:
        documents = [{"name": name, "text": text} for name, text in texts.items()]
        return rag.post("/rag/add", json={"documents": documents}).json()

    assert add(zoo="The zoo opens at 7:20.") == {"added": ["zoo"], "updated": [], "unchanged": []}
    assert add(zoo="The zoo opens at 9:40.")["updated"] == ["zoo"]
    assert add(zoo="The zoo opens at 9:40.")["unchanged"] == ["zoo"]
    asked = rag.post("/rag/ask", json={"question": "When does the zoo open?"}).json()
    assert "9:40" in asked["text"]
    assert rag.post("/rag/remove", json={"names": ["zoo"]}).json() == {"removed": ["zoo"]}
    names = [document["source"] for document in rag.get("/rag/documents").json()["documents"]]
    assert names == ["museum", "people", "pool"]


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("ask", {"question": QUESTION, "index": "none"}, 404, "no index 'none'; there are notes"),
        ("ask", {"question": QUESTION, "path": "/etc"}, 400, "path: this server does not know"),
        ("ask", {"question": QUESTION, "max_tokens": 1000}, 400, "no passage fits"),
        ("search", {"question": QUESTION, "rerank": "magic"}, 400, "rerank"),
        ("remove", {"names": ["pool", "none"]}, 400, "no document 'none'"),
        ("add", {"documents": [{"name": "a", "text": " "}]}, 400, "a: it has no text"),
        ("add", {"documents": [{"name": "a", "text": "x"}] * 2}, 400, "two have one name"),
    ],
)
def test_wrong_requests(
    rag: httpx.Client, path: str, body: dict[str, object], status: int, reason: str
) -> None:
    response = rag.post(f"/rag/{path}", json=body)
    assert response.status_code == status
    assert reason in response.json()["error"]["message"]
    assert len(rag.get("/rag/documents").json()["documents"]) == 3


def test_a_client_that_goes_ends_its_answer(registry: ModelRegistry, index: Index) -> None:
    async def leave() -> None:
        request = ChatRequest([{"role": "user", "content": QUESTION}], {"ignore_eos": True}, 500)
        answer = RagAnswer(ServedIndex(registry, "tiny", index), request)
        task = asyncio.ensure_future(answer.messages())
        (loaded,) = registry.loaded
        while not loaded.llama.engine.running:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        while not loaded.llama.engine.idle:  # it ends long before its 500 tokens
            await asyncio.sleep(0.01)
        assert all(len(request.tokens) < 500 for request in answer._requests)

    asyncio.run(asyncio.wait_for(leave(), 60))


def test_an_index_needs_one_model(index: Index) -> None:
    with pytest.raises(InputError, match="indexes need one model"):
        create_app(ModelRegistry({"a": TINY, "b": TINY}), indexes={"notes": index})


def test_serve_says_what_is_wrong_with_an_index(tmp_path: Path) -> None:
    bad = tmp_path / "notes.db"
    bad.write_text("no database" * 1000)
    for arguments, reason in (
        (["--rag", str(bad)], "--rag needs a model"),
        ([str(TINY), "--rag", str(bad)], "notes.db is no index"),
    ):
        command = [sys.executable, "-m", "llama", "serve", *arguments, "--port", "0"]
        done = subprocess.run(
            command, cwd=TINY.parents[1], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, reason in done.stderr) == (1, True), done.stderr
