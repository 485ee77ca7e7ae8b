"""Training runs of the tests don't measure this machine."""

import pytest

from llama.training import loop


@pytest.fixture(autouse=True)
def known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "matrix_rate", lambda *args: 1e11)
