"""What is sent is what the OpenAPI description declares, with no field besides."""

from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from llama.serving.openai_chat_answers import ChatCompletion
from llama.serving.openai_completions import Completion
from llama.serving.openai_embeddings import EmbeddingList
from llama.serving.openai_fields import ErrorBody
from llama.serving.openai_models import ModelCard, ModelList
from llama.serving.openai_response_events import ResponseObject
from llama.serving.rerank import Ranking

MESSAGES = [{"role": "user", "content": "What is 23 * 17?"}]
SCHEMA = {"type": "object", "properties": {"expression": {"type": "string"}}}
FUNCTION = {"name": "calculator", "parameters": SCHEMA}
LOGPROBS = {"logprobs": True, "top_logprobs": 2}


@pytest.mark.parametrize(
    ("path", "body", "shape"),
    [
        ("models", None, ModelList),
        ("models/tiny", None, ModelCard),
        ("models/big", None, ErrorBody),
        ("chat/completions", {"messages": MESSAGES, **LOGPROBS}, ChatCompletion),
        (
            "chat/completions",
            {"messages": MESSAGES, "tools": [{"type": "function", "function": FUNCTION}]},
            ChatCompletion,
        ),
        ("chat/completions", {}, ErrorBody),
        ("completions", {"prompt": "A", "logprobs": 2, "echo": True}, Completion),
        ("responses", {"input": "A", "top_logprobs": 1, "max_output_tokens": 3}, ResponseObject),
        (
            "responses",
            {"input": MESSAGES, "tools": [{"type": "function", **FUNCTION}]},
            ResponseObject,
        ),
        ("embeddings", {"input": "A"}, EmbeddingList),
        ("embeddings", {"input": ["A", "B"], "encoding_format": "base64"}, EmbeddingList),
        ("rerank", {"query": "A", "documents": ["B"], "return_documents": True}, Ranking),
    ],
)
def test_an_answer_has_its_declared_shape(
    url: str, path: str, body: dict[str, Any] | None, shape: type[BaseModel]
) -> None:
    if body is None:
        answer = httpx.get(f"{url}/v1/{path}")
    else:
        settings = {"temperature": 0} if "messages" in body or "prompt" in body else {}
        answer = httpx.post(f"{url}/v1/{path}", json={"model": "tiny", **settings, **body})
    shape.model_validate_json(answer.text, extra="forbid", strict=True)
    assert answer.is_error == (shape is ErrorBody)


def test_the_description_names_every_route(url: str) -> None:
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    for path in ("chat/completions", "completions", "responses", "embeddings", "rerank"):
        operation = paths[f"/v1/{path}"]["post"]
        answers = operation["responses"]
        assert set(answers) == {"200", "4XX", "5XX"}
        (name,) = answers["200"]["content"]["application/json"]["schema"].values()
        assert name.startswith("#/components/schemas/")
        streams = path not in ("embeddings", "rerank")
        assert ("text/event-stream" in answers["200"]["content"]) == streams
    assert {"/v1/models", "/v1/models/{name}"} <= set(paths)
