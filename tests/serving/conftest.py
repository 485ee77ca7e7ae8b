"""A real server on loopback, which serves the bundled model."""

import contextlib
import shutil
import subprocess
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from fastapi import FastAPI
from uvicorn.config import LifespanType

from llama.generation import Llama
from llama.serving.answers import ChatAnswer, ChatDelta
from llama.serving.app import create_app
from llama.serving.registry import ModelRegistry

TINY = Path(__file__).parents[2] / "params" / "tiny"


@contextlib.contextmanager
def running(app: FastAPI, lifespan: LifespanType = "off", **config: Any) -> Iterator[str]:
    """The address of a server that runs `app` in a thread, from its startup to its shutdown."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="warning", lifespan=lifespan, **config)
    )
    listening = threading.Event()
    startup = server.startup

    async def report(*args: object, **kwargs: object) -> None:
        await startup(*args, **kwargs)
        listening.set()

    server.startup = report
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert listening.wait(60)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def models() -> Iterator[ModelRegistry]:
    registry = ModelRegistry({"tiny": TINY}, keep_alive=-1, device="cpu")
    registry.load("tiny")
    yield registry
    registry.close()


@pytest.fixture(scope="session")
def url(models: ModelRegistry) -> Iterator[str]:
    with running(create_app(models)) as url:
        yield url


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="session")
def llama(models: ModelRegistry) -> Llama:
    """The model that is served, for what Python's calls give."""
    (loaded,) = models.loaded
    return loaded.llama


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a script with a package from npm, and returns what it prints.

    Skips where there is no node, or npm can't install the package.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")

    def run(package: str, script: Path, *arguments: str) -> str:
        folder = tmp_path_factory.mktemp("node")
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), package]
        try:
            installed = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm can't install {package} in two minutes")
        if installed.returncode:
            pytest.skip(f"npm can't install {package}: {installed.stderr[-300:]}")
        shutil.copy(script, folder)  # beside the package, where node looks for it
        command = ["node", str(folder / script.name), *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


@pytest.fixture
def broken_in_mid_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer fails after its first delta."""
    deltas = ChatAnswer.deltas

    async def broken(self: ChatAnswer) -> AsyncGenerator[ChatDelta, None]:
        async for delta in deltas(self):
            yield delta
            raise RuntimeError("broken")

    monkeypatch.setattr(ChatAnswer, "deltas", broken)
