"""Ollama's client pulls, copies and deletes models, from a stand-in for a hub."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama
import pytest
from hub_server import Body, Cut, Hang, HubServer
from serving.conftest import TINY, running

from llama.checkpoint import hub_session
from llama.checkpoint.convert import convert
from llama.serving.app import create_app
from llama.serving.registry import ModelRegistry
from llama.storage import pulled

REPO = "owner/tiny"
NAME = f"hf:{REPO}"
WEIGHTS = "model.safetensors"
QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("repository") / "hf"
    convert(str(TINY), str(folder), to="hf")
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    del found["checksums.sha256"]
    return found


@pytest.fixture
def hub(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    monkeypatch.setenv("LLAMA_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setattr(hub_session, "DELAYS", (0,) * 5)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.models[REPO] = files
        yield server


@pytest.fixture
def registry(hub: HubServer) -> Iterator[ModelRegistry]:
    """All models that were pulled."""
    registry = ModelRegistry(
        lambda: {model.name: model.folder for model in pulled.pulled_models()},
        keep_alive=-1,
        device="cpu",
    )
    yield registry
    registry.close()


@pytest.fixture
def client(registry: ModelRegistry) -> Iterator[ollama.Client]:
    with running(create_app(registry)) as url:
        yield ollama.Client(url)


def names(client: ollama.Client) -> list[str | None]:
    return [model.model for model in client.list().models]


def test_the_life_of_a_model(
    client: ollama.Client, registry: ModelRegistry, files: dict[str, bytes]
) -> None:
    assert names(client) == ["tiny:latest"]
    events = list(client.pull(NAME, stream=True))
    assert events[0].status == "pulling manifest"
    assert [event.status for event in events[-3:]] == [
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    whole = [event for event in events if event.total == len(files[WEIGHTS])][-1]
    assert whole.completed == whole.total
    assert whole.digest is not None
    assert whole.status == f"pulling {whole.digest}"
    assert client.pull(NAME).status == "success"  # nothing to do

    assert names(client) == [f"{NAME}:latest", "tiny:latest"]
    listed = client.list().models[0]
    record = pulled.find(NAME)
    assert record is not None
    assert listed.digest == record.digest
    assert client.show(NAME).license == "llama3.2"
    answer = client.chat(NAME, QUESTION, options={"temperature": 0})
    assert answer.message.content == "12 + 30 = 42."

    assert client.copy(NAME, "mine").status == "success"
    assert client.delete(NAME).status == "success"
    assert names(client) == ["mine:latest", "tiny:latest"]
    assert client.chat("mine:latest", QUESTION, options={"temperature": 0}) is not None
    assert client.delete("mine").status == "success"
    deadline = time.monotonic() + 60
    while registry.loaded:  # it leaves memory too, in a thread
        assert time.monotonic() < deadline
    assert names(client) == ["tiny:latest"]


def test_older_clients_say_name_and_post(client: ollama.Client, hub: HubServer) -> None:
    url = str(client._client.base_url)
    response = httpx.post(f"{url}/api/pull", json={"name": NAME, "insecure": True})
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.splitlines()[-1] == '{"status":"success"}'
    assert httpx.post(f"{url}/api/delete", json={"name": NAME}).status_code == 200
    assert pulled.find(NAME) is None


def test_a_client_that_goes_away_ends_the_pull(client: ollama.Client, hub: HubServer) -> None:
    go_on = threading.Event()
    hub.faults[WEIGHTS] = [Hang(1000, go_on)]
    events = client.pull(NAME, stream=True)
    while (next(events).completed or 0) != 1000:
        pass
    events.close()
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "llama pull":
            thread.join()
    assert names(client) == ["tiny:latest"]
    assert client.pull(NAME).status == "success"
    assert any("Range" in headers for headers in hub.asked_for(WEIGHTS))


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("big", 400, "big is not a model that can be pulled"),
        ("hf:owner/other", 404, "owner/other"),
        ("hf:owner/gated", 403, "owner/gated"),
        ("hf:owner/wrong", 500, WEIGHTS),
    ],
)
def test_what_cannot_be_pulled(
    client: ollama.Client,
    hub: HubServer,
    files: dict[str, bytes],
    name: str,
    status: int,
    words: str,
) -> None:
    for repo in ("owner/gated", "owner/wrong"):
        hub.models[repo] = files
    hub.gated.add("owner/gated")
    hub.faults[WEIGHTS] = [Body(b"wrong" * 100), *[Cut(0)] * 20]
    with pytest.raises(ollama.ResponseError, match=words) as info:
        client.pull(name)
    assert info.value.status_code == status
    with pytest.raises(ollama.ResponseError, match=words):
        list(client.pull(name, stream=True))


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "copy", {"source": "big", "destination": "a"}, 404, "no model big"),
        ("POST", "copy", {"source": "tiny", "destination": ""}, 400, "characters"),
        ("POST", "copy", {"source": "tiny"}, 400, "destination"),
        ("DELETE", "delete", {"model": "big"}, 404, "there is no model 'big'"),
        ("DELETE", "delete", {"model": "tiny"}, 400, "can't be removed"),
        ("DELETE", "delete", {}, 400, "give the name of one model"),
        ("POST", "pull", {"model": NAME, "username": "me"}, 400, "username"),
        ("POST", "pull", {"model": NAME, "stream": 1}, 400, "stream"),
    ],
)
def test_what_is_wrong_is_refused(
    client: ollama.Client, method: str, path: str, body: dict[str, str], status: int, words: str
) -> None:
    response = httpx.request(method, f"{client._client.base_url}/api/{path}", json=body)
    assert response.status_code == status
    assert words in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "pull", {"model": NAME}),
        ("POST", "copy", {"source": "tiny", "destination": "mine"}),
        ("DELETE", "delete", {"model": "tiny"}),
    ],
)
def test_a_server_of_named_models_does_not_change_them(
    url: str, method: str, path: str, body: dict[str, str]
) -> None:
    response = httpx.request(method, f"{url}/api/{path}", json=body)
    assert response.status_code == 403
    assert "serves tiny only" in response.json()["error"]
