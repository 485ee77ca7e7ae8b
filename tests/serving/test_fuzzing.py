"""schemathesis over the description of all routes: it is true, and nothing is a server error."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving.conftest import TINY, running

from llama.serving.app import create_app
from llama.serving.registry import Limits, ModelRegistry


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of its own, which has nothing that a client could remove."""
    monkeypatch.setenv("LLAMA_MODELS", str(tmp_path))
    models = ModelRegistry({"tiny": TINY}, keep_alive=-1, device="cpu", limits=Limits(timeout=5))
    models.load("tiny")
    with running(create_app(models)) as url:
        yield url
    models.close()


@pytest.mark.slow
def test_the_description_is_true_and_nothing_is_a_server_error(url: str, tmp_path: Path) -> None:
    # A description can't say which models there are, or which fields exclude each other: bodies
    # that fit it may be refused. /api/pull asks a hub.
    command = [
        Path(sys.executable).with_name("st"),
        "run",
        f"{url}/openapi.json",
        *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
        *("--exclude-path", "/api/pull"),
        *("--phases", "coverage,fuzzing", "--max-examples", "20", "--seed", "1"),
        *("--generation-database", "none", "--warnings", "off", "--no-color"),
    ]
    done = subprocess.run(
        [*map(str, command)],
        cwd=tmp_path,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
    )
    report = "\n".join(line[:300] for line in done.stdout.splitlines())
    print(report[-1500:])
    assert done.returncode == 0, report[-8000:] + done.stderr[-2000:]
