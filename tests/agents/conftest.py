"""The bundled model, and servers of agents."""

import contextlib
from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI
from scripted import TINY, running

from llama import Llama
from llama.serving.registry import ModelRegistry


@pytest.fixture
def serve() -> Iterator[Callable[[FastAPI], str]]:
    """Runs applications until the test ends; gives their addresses."""
    with contextlib.ExitStack() as stack:
        yield lambda app: stack.enter_context(running(app))


@pytest.fixture(scope="session")
def tiny() -> Llama:
    """The bundled model."""
    return Llama.build(TINY, device="cpu")


@pytest.fixture(scope="session")
def models() -> Iterator[ModelRegistry]:
    registry = ModelRegistry({"tiny": TINY}, keep_alive=-1, device="cpu")
    registry.load("tiny")
    yield registry
    registry.close()
