"""Ollama's client for JavaScript, from npm, against a real server."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama.generation import Llama


@pytest.mark.slow
def test_the_client_from_npm(url: str, llama: Llama, node: Callable[..., str]) -> None:
    script = Path(__file__).with_name("ollama_client.mjs")
    got = json.loads(node("ollama@0.6.4", script, url))
    assert got["models"] == got["ps"] == ["tiny:latest"]
    assert got["version"].count(".") == 2
    assert got["show"] == ["completion", "tools"]
    assert got["chat"] == got["stream"] == got["generate"] == "12 + 30 = 42."
    assert got["count"] == 13
    assert got["called"]["arguments"] == {"expression": "23 * 17"}
    assert got["tools"] == "23 * 17 = 391."
    assert isinstance(got["format"]["sum"], int)
    vectors = torch.tensor(got["embeddings"], dtype=torch.float32)
    assert torch.equal(vectors, llama.embed(["A dog ran.", "A cat slept."]))
    (missing, refused) = got["errors"]
    assert missing[0] == 404
    assert "there is no model 'big'" in missing[1]
    assert refused[0] == 400
    assert "think" in refused[1]
    assert got["aborted"]
