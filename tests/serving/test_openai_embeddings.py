"""Embeddings and reranking by the clients that call them."""

from typing import Any

import httpx
import openai
import pytest
import torch

from llama.generation import Llama

TEXTS = ["A dog ran in the park.", "12 + 30 = 42."]


def test_embeddings_are_those_of_python(client: openai.OpenAI, llama: Llama) -> None:
    expected = llama.embed(TEXTS)
    for kind in ("float", "base64", None):  # the client asks for base64 by itself
        settings = {} if kind is None else {"encoding_format": kind}
        answer = client.embeddings.create(model="tiny", input=TEXTS, **settings)
        assert [item.index for item in answer.data] == [0, 1]
        vectors = [item.embedding for item in answer.data]
        if kind == "base64":
            assert all(isinstance(vector, str) for vector in vectors)
        else:
            assert torch.equal(torch.tensor(vectors, dtype=torch.float32), expected)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 20
    (one,) = client.embeddings.create(model="tiny", input=TEXTS[1]).data
    assert one.embedding == vectors[1]


@pytest.mark.parametrize(
    ("wrong", "param", "words"),
    [
        ({"input": [1, 2]}, "input", "check_embedding_ctx_length=False"),
        ({"input": [[1, 2], [3]]}, "input", "check_embedding_ctx_length=False"),
        ({"input": []}, "input", "empty"),
        ({"input": ""}, "input.0", "empty"),
        ({"input": ["a", ""]}, "input.1", "empty"),
        ({"input": [None]}, "input.0", "valid string"),
        ({"dimensions": 3}, "dimensions", "this model's vectors have"),
        ({"encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"truncate": True}, "truncate", "does not know"),
        ({"input": "word " * 1000}, None, "the context is 1024"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    url: str, wrong: dict[str, Any], param: str | None, words: str
) -> None:
    for path in ("/v1/embeddings", "/embeddings"):
        response = httpx.post(url + path, json={"model": "tiny", "input": "a", **wrong})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error
        assert words in error["message"]


def test_vectors_of_the_models_own_size(client: openai.OpenAI, llama: Llama) -> None:
    size = llama.model.params.dim
    answer = client.embeddings.create(model="tiny", input="a", dimensions=size)
    assert len(answer.data[0].embedding) == size


QUERY = "What did the dog do?"


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_reranking(url: str, llama: Llama, path: str) -> None:
    documents = [TEXTS[1], TEXTS[0], {"text": "A cat slept."}]
    body = {"model": "tiny", "query": QUERY, "documents": documents}
    answer = httpx.post(url + path, json=body).json()
    scores = llama.rerank(QUERY, [TEXTS[1], TEXTS[0], "A cat slept."])
    ranked = sorted(enumerate(scores), key=lambda each: -each[1])
    assert answer["results"] == [{"index": i, "relevance_score": score} for i, score in ranked]
    assert answer["usage"]["total_tokens"] > 20

    body |= {"top_n": 2, "return_documents": True}
    answer = httpx.post(url + path, json=body).json()
    texts = [TEXTS[1], TEXTS[0], "A cat slept."]
    assert answer["results"] == [
        {"index": i, "relevance_score": score, "document": {"text": texts[i]}}
        for i, score in ranked[:2]
    ]


@pytest.mark.parametrize(
    ("wrong", "param", "words"),
    [
        ({"query": ""}, "query", "empty"),
        ({"query": None}, "query", "valid string"),
        ({"documents": []}, "documents", "at least 1"),
        ({"documents": [3]}, "documents.0", "valid string"),
        ({"documents": [{"text": "a", "title": "b"}]}, "documents.0.title", "does not know"),
        ({"top_n": 0}, "top_n", "greater than or equal to 1"),
        ({"max_tokens_per_doc": 10}, "max_tokens_per_doc", "does not support"),
        ({"documents": ["a", "word " * 2000]}, None, "documents[1]"),
    ],
)
def test_wrong_reranking_is_refused_by_name(
    url: str, wrong: dict[str, Any], param: str | None, words: str
) -> None:
    body = {"model": "tiny", "query": QUERY, "documents": ["a"], **wrong}
    response = httpx.post(f"{url}/v1/rerank", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
