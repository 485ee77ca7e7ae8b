"""What Ollama's client learns of the models, and embeddings."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
import torch
from serving.conftest import TINY, running

from llama.generation import Llama
from llama.serving.app import create_app
from llama.serving.registry import ModelRegistry


@pytest.fixture
def ollama_client(url: str) -> ollama.Client:
    return ollama.Client(url)


def test_the_root_says_what_clients_look_for(url: str) -> None:
    assert httpx.get(url).text == "Ollama is running"
    assert httpx.head(url).status_code == 200


def test_the_version_is_made_of_numbers(url: str) -> None:
    version = httpx.get(f"{url}/api/version").json()["version"]
    numbers = [int(part) for part in version.split(".")]
    assert numbers >= [0, 6, 4]


def test_the_list_of_models(ollama_client: ollama.Client) -> None:
    (model,) = ollama_client.list().models
    assert model.model == "tiny:latest"
    files = sum(file.stat().st_size for file in TINY.glob("*.pth"))
    assert model.size == files
    assert model.modified_at == datetime.fromtimestamp(int(TINY.stat().st_mtime), UTC)
    assert len(bytes.fromhex(model.digest)) == 32
    assert model.details.model_dump() == {
        "parent_model": "",
        "format": "pth",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "6.72M",
        "quantization_level": "BF16",
    }


@pytest.mark.parametrize("name", ["tiny", "tiny:latest"])
def test_what_a_model_is(ollama_client: ollama.Client, llama: Llama, name: str) -> None:
    shown = ollama_client.show(name)
    assert shown.capabilities == ["completion", "tools"]
    args = llama.model.params
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["general.parameter_count"] == 6_722_304
    assert shown.modelinfo["llama.context_length"] == 1024
    assert shown.modelinfo["llama.embedding_length"] == args.dim
    assert shown.modelinfo["llama.block_count"] == args.n_layers
    assert shown.modelinfo["llama.attention.head_count_kv"] == args.n_kv_heads
    assert shown.details.quantization_level == "BF16"
    assert shown.license == "Apache-2.0"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"name": "tiny"}, 200, ""),
        ({"model": "tiny", "name": "tiny"}, 200, ""),
        ({"model": "tiny", "verbose": False}, 200, ""),
        ({}, 400, "give the name of one model"),
        ({"model": ""}, 400, "give the name of one model"),
        ({"model": "tiny", "name": "big"}, 400, "give the name of one model"),
        ({"model": 5}, 400, "model"),
        ({"model": "tiny", "verbose": True}, 400, "verbose"),
        ({"model": "tiny", "depth": 1}, 400, "depth"),
        ({"model": "big"}, 404, "there is no model 'big'"),
    ],
)
def test_how_a_model_is_named(url: str, body: dict[str, Any], status: int, words: str) -> None:
    response = httpx.post(f"{url}/api/show", json=body)
    assert response.status_code == status
    assert words in response.json().get("error", "")


def test_models_in_memory(ollama_client: ollama.Client) -> None:
    (model,) = ollama_client.ps().models
    assert (model.name, model.context_length) == ("tiny:latest", 1024)
    assert model.size > 6_722_304
    assert model.size_vram == 0
    assert model.digest == ollama_client.list().models[0].digest


@pytest.fixture
def idle_url() -> Iterator[str]:
    """A server that has loaded nothing."""
    registry = ModelRegistry({"tiny": TINY}, keep_alive=60, device="cpu")
    with running(create_app(registry)) as url:
        yield url
    registry.close()


def test_loading_and_unloading(idle_url: str) -> None:
    client = ollama.Client(idle_url)
    assert client.ps().models == []
    assert client.generate("tiny", keep_alive=0).done_reason == "unload"  # nothing to do
    assert client.ps().models == []
    assert client.generate("tiny", keep_alive="10m").done_reason == "load"
    (model,) = client.ps().models
    left = (model.expires_at - datetime.now(UTC)).total_seconds()
    assert 0 < left <= 600
    assert client.generate("tiny", keep_alive=-1).done_reason == "load"
    assert client.ps().models[0].expires_at.year == 9999
    assert client.chat("tiny", [], keep_alive=0).done_reason == "unload"
    deadline = time.monotonic() + 60
    while client.ps().models:  # at once, in a thread
        assert time.monotonic() < deadline
    answer = client.chat("tiny", [{"role": "user", "content": "Hi!"}], options={"num_predict": 1})
    assert answer.load_duration > 10**6


def test_a_damaged_model_is_in_the_list(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{")
    registry = ModelRegistry({"broken": tmp_path, "tiny": TINY}, device="cpu")
    with running(create_app(registry)) as url:
        client = ollama.Client(url)
        broken, tiny = client.list().models
        assert (broken.model, broken.size, broken.details.family) == ("broken:latest", 0, "")
        assert tiny.details.family == "llama"
        with pytest.raises(ollama.ResponseError, match=r"params\.json") as info:
            client.show("broken")
        assert info.value.status_code == 400


def test_unloading_loads_nothing(tmp_path: Path) -> None:
    with running(create_app(ModelRegistry({"broken": tmp_path}, device="cpu"))) as url:
        client = ollama.Client(url)
        assert client.generate("broken", keep_alive=0).done_reason == "unload"
        with pytest.raises(ollama.ResponseError):
            client.generate("broken")


def test_adapters_are_models(tmp_path: Path) -> None:
    registry = ModelRegistry({"base": TINY}, {"pirate": tmp_path}, device="cpu")
    with running(create_app(registry)) as url:
        client = ollama.Client(url)
        base, pirate = client.list().models
        assert (base.details.parent_model, pirate.details.parent_model) == ("", "base")
        assert base.digest != pirate.digest
        assert client.show("pirate").modelinfo["general.basename"] == "pirate"


def test_a_model_has_several_spellings_and_a_context(tmp_path: Path) -> None:
    registry = ModelRegistry({"llama3.2:3b": TINY}, device="cpu", max_seq_len=64)
    with running(create_app(registry)) as url:
        client = ollama.Client(url)
        assert client.list().models[0].model == "llama3.2:3b"
        assert client.show("llama3.2").modelinfo["llama.context_length"] == 1024
        client.generate("llama3.2:latest")
        assert client.show("llama3.2").modelinfo["llama.context_length"] == 64
    registry.close()


TEXTS = ["A dog ran in the park.", "12 + 30 = 42."]


def test_embeddings_are_those_of_python(ollama_client: ollama.Client, llama: Llama) -> None:
    expected = llama.embed(TEXTS)
    answer = ollama_client.embed("tiny", TEXTS, truncate=True, dimensions=llama.model.params.dim)
    assert torch.equal(torch.tensor(answer.embeddings), expected)
    assert answer.prompt_eval_count > 20
    assert answer.total_duration > 0
    (one,) = ollama_client.embed("tiny", TEXTS[1]).embeddings
    assert torch.equal(torch.tensor(one), expected[1])
    older = ollama_client.embeddings("tiny", TEXTS[0])
    assert torch.equal(torch.tensor(older.embedding), expected[0])


def test_without_a_text_there_is_no_vector(ollama_client: ollama.Client) -> None:
    assert ollama_client.embed("tiny", []).embeddings == []
    assert ollama_client.embed("tiny", "").embeddings == []
    assert ollama_client.embeddings("tiny", "").embedding == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"input": 5}, "input"),
        ({"input": [5]}, "input.0"),
        ({"input": ["a", ""]}, "[1]"),
        ({"dimensions": 7}, "dimensions: this model's vectors have 256"),
        ({"input": "word " * 600}, "the context is 1024"),
        ({"input": "word " * 600, "truncate": True}, "the context is 1024"),
        ({"input": "one two three four", "options": {"num_ctx": 3}}, "options.num_ctx is 3"),
        ({"options": {"warp": 9}}, "options.warp"),
        ({"encoding_format": "base64"}, "encoding_format"),
    ],
)
def test_what_is_wrong_is_refused_by_name(url: str, wrong: dict[str, Any], words: str) -> None:
    response = httpx.post(f"{url}/api/embed", json={"model": "tiny", "input": "a", **wrong})
    assert response.status_code == 400
    assert words in response.json()["error"]
