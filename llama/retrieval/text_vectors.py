"""Vectors of texts, from any function: a model's own embeddings, or a server's.

embed = EmbeddingServer("http://127.0.0.1:8000/v1", "tiny")
embed(["a cat", "a dog"])    # float32 (2, dim), each row of length 1
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import httpx
import numpy as np

from llama.errors import InputError

Embed = Callable[[Sequence[str]], np.ndarray]

_BATCH = 64  # texts in a request
_SECONDS = 120.0


@dataclass(frozen=True)
class EmbeddingServer:
    """OpenAI's POST /embeddings at `url`, with a model's name.

    The key is that of the environment variable OPENAI_API_KEY unless it is given. Raises OSError
    where the server can't be reached or refuses, InputError for an answer of another shape.
    """

    url: str
    model: str
    key: str = field(default_factory=lambda: os.environ.get("OPENAI_API_KEY", ""), repr=False)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        rows: list[np.ndarray] = []
        with httpx.Client(headers=headers, timeout=_SECONDS) as client:
            for i in range(0, len(texts), _BATCH):
                rows += self._rows(client, list(texts[i : i + _BATCH]))
        return unit_rows(np.stack(rows))

    def _rows(self, client: httpx.Client, texts: list[str]) -> list[np.ndarray]:
        body = {"model": self.model, "input": texts, "encoding_format": "float"}
        try:
            response = client.post(f"{self.url.rstrip('/')}/embeddings", json=body)
        except httpx.HTTPError as error:
            raise OSError(f"{self.url}: {type(error).__name__}: {error}") from error
        if response.status_code != 200:
            raise OSError(f"{self.url}: status {response.status_code}: {response.text[:300]}")
        try:
            data = sorted(response.json()["data"], key=lambda item: item["index"])
            rows = [np.array(item["embedding"], dtype=np.float32) for item in data]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.url}: that is no answer with embeddings: {error!r}") from error
        if len(rows) != len(texts) or len({row.shape for row in rows}) > 1:
            raise InputError(f"{self.url}: {len(rows)} embeddings came for {len(texts)} texts")
        return rows


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """The rows, float32, scaled to length 1; a row of zeros stays."""
    vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.ndim != 2:
        raise InputError(f"embeddings should be (texts, dim), not {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise InputError("embeddings hold values that are not finite")
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def embedding_option(
    embed: str | None, model: str | None
) -> Literal["model"] | EmbeddingServer | None:
    """What the flags --embed and --embed_model say. InputError where they do not fit together."""
    if embed is None or embed == "model":
        if model is not None:
            raise InputError("--embed_model is for --embed http://...")
        return "model" if embed else None
    if not embed.startswith(("http://", "https://")):
        raise InputError(f"--embed is model or the address of a server, not {embed!r}")
    if model is None:
        raise InputError(f"--embed {embed} needs --embed_model, the name of its model")
    return EmbeddingServer(embed, model)
