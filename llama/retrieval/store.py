"""What an index needs of its storage: `Store`, which `SqliteStore` is for one file.

A database for many machines (pgvector, Qdrant) would be another class with these methods.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llama.retrieval.chunking import Chunk


@dataclass(frozen=True)
class StoredDocument:
    """A document in an index: its path or name, the sha256 of its content, and its chunks."""

    source: str
    digest: str
    num_chunks: int


@dataclass(frozen=True)
class StoredChunk:
    """A chunk with its text; `start` and `end` are offsets in the text of its document."""

    source: str
    text: str
    start: int
    end: int
    heading: str
    page: int | None


Ranked = list[tuple[int, float]]  # ids of chunks and their scores, the best first


class Store(Protocol):
    """Documents, chunks, full-text index and vectors. Any thread and several processes may call.

    `settings` are texts that are fixed when the store is made. Ids of chunks are never used again.
    """

    settings: dict[str, str]

    def documents(self) -> list[StoredDocument]:
        """All documents, sorted by source."""

    def digests(self, sources: Sequence[str]) -> dict[str, str]:
        """The digests of those of the documents that are there."""

    def put(
        self,
        source: str,
        digest: str,
        text: str,
        chunks: Sequence[Chunk],
        vectors: np.ndarray | None,
    ) -> None:
        """Stores a document, in the place of the one of that source if there is one.

        It happens as a whole or not at all. `vectors` are float32 (chunks, dim).
        """

    def remove(self, sources: Sequence[str]) -> None:
        """Removes documents, all or none."""

    def full_text_query(self, question: str) -> str:
        """What `matching` looks for, in the store's own words; "" for nothing."""

    def matching(self, question: str, k: int) -> Ranked:
        """The `k` best chunks by BM25, of those that have any of a question's words."""

    def nearest(self, vector: np.ndarray, k: int) -> Ranked:
        """The `k` chunks whose vectors have the largest dot product with `vector`, (dim,)."""

    def chunks(self, ids: Iterable[int]) -> dict[int, StoredChunk]:
        """Those chunks that are still there."""

    def close(self) -> None:
        """Releases the storage."""
