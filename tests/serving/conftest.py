"""A real server on loopback, which serves the bundled model."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import uvicorn
from fastapi import FastAPI

from llama.generation import Llama
from llama.serving.app import create_app
from llama.serving.registry import ModelRegistry

TINY = Path(__file__).parents[2] / "params" / "tiny"


@contextlib.contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The address of a server that runs `app` in a thread."""
    config = uvicorn.Config(app, port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
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
