"""The bundled model, loaded once."""

from pathlib import Path

import pytest

from llama.generation import Llama

TINY = Path(__file__).parents[2] / "params" / "tiny"


@pytest.fixture(scope="session")
def llama() -> Llama:
    return Llama.build(TINY, device="cpu")
