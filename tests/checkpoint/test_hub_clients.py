"""The hubs' own clients against the stand-in, which shows that it is like the hubs.

And what they leave to be wished for, as a reason why `llama pull` speaks the routes itself.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Body, Cut, HubServer

from llama.checkpoint import hub_session
from llama.checkpoint.pulling import pull
from llama.storage import pulled

REPO = "owner/name"
WEIGHTS = "model.safetensors"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    WEIGHTS: bytes(range(256)) * 1000,
    "original/params.json": b"{}",
    "tokenizer.json": b"{}",
    "README.md": b"# A model",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    for name in [name for name in os.environ if name.startswith(("HF_", "MODELSCOPE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LLAMA_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope"))
    monkeypatch.setenv("MODELSCOPE_INTRA_CLOUD_ACCELERATION", "false")
    monkeypatch.setattr(hub_session, "DELAYS", (0,) * 5)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.models[REPO] = dict(FILES)
        yield server


def content(folder: str | Path) -> dict[str, bytes]:
    root = Path(folder)
    found = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name in FILES}


@pytest.mark.parametrize("token", [None, "good"])
def test_huggingface_hub(token: str | None, hub: HubServer, tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    if token:
        hub.gated.add(REPO)
    folder = huggingface_hub.snapshot_download(
        REPO, endpoint=hub.url, cache_dir=tmp_path / "huggingface" / "hub", token=token
    )
    assert content(folder) == FILES
    hub.requests.clear()
    # Its cache is what `llama pull` takes, with all files and without their bytes over the wire.
    list(pull("hf:owner/name"))
    model = pulled.find("hf:owner/name")
    assert model is not None
    assert content(model.folder) == {
        name: FILES[name] for name in ("config.json", WEIGHTS, "tokenizer.json")
    }
    assert all("/api/" in path for _, path, _ in hub.requests)


def test_errors_of_huggingface_hub(hub: HubServer, tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    errors = huggingface_hub.errors

    def download(repo: str, **settings: str) -> None:
        cache = tmp_path / "cache"
        huggingface_hub.snapshot_download(repo, endpoint=hub.url, cache_dir=cache, **settings)

    with pytest.raises(errors.RepositoryNotFoundError):
        download("owner/nothing")
    with pytest.raises(errors.RevisionNotFoundError):
        download(REPO, revision="v9")
    hub.gated.add(REPO)
    with pytest.raises(errors.GatedRepoError):
        download(REPO, token="bad")


def test_huggingface_hub_accepts_wrong_bytes(hub: HubServer, tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    wrong = b"x" * len(FILES[WEIGHTS])
    hub.faults[WEIGHTS] = [Body(wrong)]
    cache = tmp_path / "huggingface" / "hub"
    folder = huggingface_hub.snapshot_download(REPO, endpoint=hub.url, cache_dir=cache)
    assert content(folder)[WEIGHTS] == wrong
    list(pull("hf:owner/name"))  # this does not, and downloads the file
    model = pulled.find("hf:owner/name")
    assert model is not None
    assert content(model.folder)[WEIGHTS] == FILES[WEIGHTS]


@pytest.mark.parametrize("token", [None, "good"])
def test_modelscope_hub(token: str | None, hub: HubServer, tmp_path: Path) -> None:
    modelscope_hub = pytest.importorskip("modelscope_hub")
    if token:
        hub.gated.add(REPO)
    api = modelscope_hub.HubApi(endpoint=hub.url, token=token or "")
    hub.faults[WEIGHTS] = [Cut(1000)]
    folder = api.download_repo(REPO, "model", local_dir=tmp_path / "folder")
    assert content(folder) == FILES


def test_errors_of_modelscope_hub(hub: HubServer, tmp_path: Path) -> None:
    modelscope_hub = pytest.importorskip("modelscope_hub")
    api = modelscope_hub.HubApi(endpoint=hub.url, token="")
    with pytest.raises(modelscope_hub.NotExistError):
        api.download_repo("owner/nothing", "model", local_dir=tmp_path / "folder")
    hub.gated.add(REPO)
    with pytest.raises(modelscope_hub.PermissionDeniedError):
        api.download_repo(REPO, "model", local_dir=tmp_path / "folder")
