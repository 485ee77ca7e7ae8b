"""OpenAI's client for JavaScript, from npm, against a real server."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama.generation import Llama


@pytest.mark.slow
def test_the_client_from_npm(url: str, llama: Llama, node: Callable[..., str]) -> None:
    script = Path(__file__).with_name("openai_client.mjs")
    got = json.loads(node("openai@7.57.0", script, url))
    assert got["models"] == ["tiny"]
    assert got["chat"] == got["stream"] == got["response"] == "12 + 30 = 42."
    assert got["usage"]["completion_tokens"] == 13
    assert got["tools"] == ["23 * 17 = 391."] * 2
    (expected,) = llama.text_completion(["Once upon a"], temperature=0, max_gen_len=16)
    assert got["completion"] == expected["generation"]
    vectors = torch.tensor(got["embeddings"], dtype=torch.float32)
    assert torch.equal(vectors, llama.embed(["A dog ran.", "A cat slept."]))
    assert got["events"][0] == "response.created"
    assert got["events"][-1] == "response.completed"
    assert json.loads(got["called"]) == {"expression": "23 * 17"}
    assert got["error"] == ["BadRequestError", 400, "reasoning_effort"]
