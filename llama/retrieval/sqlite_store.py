"""`SqliteStore`: an index in one SQLite file, with its full-text search and vectors in numpy.

Writers take turns, readers do not wait (SQLite's write-ahead log). A document is written in one
transaction, so a process that is killed leaves every document as it was or as it is now. While the
file is open there are two more beside it, -wal and -shm, which the last process to close removes.
"""

import contextlib
import math
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from llama.errors import InputError, MissingFileError
from llama.retrieval.chunking import Chunk
from llama.retrieval.search_terms import index_terms, match_terms
from llama.retrieval.store import Ranked, StoredChunk, StoredDocument
from llama.storage.files import expand

# To be raised whenever the tables change, or what `index_terms` makes of a text.
VERSION = 1
_APPLICATION = 0x4C6C5261  # SQLite's mark of whose file it is
_BUSY_SECONDS = 60.0
# FTS5 has k1 = 1.2, and multiplies counts of a term by the column's weight: 1.2 / 0.8 = 1.5.
_TERM_RANKS = "select rowid, rank from terms where terms match ? and rank match 'bm25(0.8)'"
_FTS5_FACTOR = -(1.2 + 1)  # of its scores, beside their idf
_TABLES = """
create table settings (name text primary key, value text not null) without rowid;
create table documents (
    id integer primary key autoincrement,
    source text not null unique,
    digest text not null,
    text text not null
);
create table chunks (
    id integer primary key autoincrement,
    document integer not null references documents (id),
    start integer not null,
    end integer not null,
    heading text not null,
    page integer,
    vector blob
);
create index chunks_by_document on chunks (document);
create virtual table terms using fts5 (body, tokenize = 'porter unicode61');
create table changes (count integer not null);
insert into changes values (0);
"""
_Scores = tuple[np.ndarray, np.ndarray]  # ids of chunks, and a number for each


class SqliteStore:
    """The `Store` in the file at `path`, which is made with `settings` if there is none.

    Raises InputError for a file that is no index, or one of another version; MissingFileError
    where there is none and `settings` is None.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, str] | None = None) -> None:
        self.path = Path(expand(path))
        if not self.path.exists():
            if settings is None:
                raise MissingFileError(f"there is no index {self.path}; llama rag add makes one")
            if not self.path.absolute().parent.is_dir():
                raise MissingFileError(f"{self.path}: its folder does not exist; make it first")
        self._lock = threading.RLock()
        self._frequent: tuple[int, int, dict[str, _Scores]] = (-1, 0, {})  # changes, chunks, terms
        self._connection = sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self.settings = self._open(settings)
        except sqlite3.OperationalError as error:  # locked, read-only, ...
            self.close()
            raise OSError(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            self.close()
            raise InputError(f"{self.path} is no index: {error}") from None
        except (InputError, OSError):
            self.close()
            raise
        self._vectors: tuple[int, np.ndarray, np.ndarray] | None = None  # changes, ids, vectors

    def _open(self, settings: Mapping[str, str] | None) -> dict[str, str]:
        (has_tables,) = self._connection.execute("select count(*) from sqlite_schema").fetchone()
        if not has_tables and settings is not None:
            self._connection.execute("pragma journal_mode = wal")
            with self._writing() as connection:  # in the meantime another process may have
                (has_tables,) = connection.execute("select count(*) from sqlite_schema").fetchone()
                if not has_tables:
                    for statement in _TABLES.split(";")[:-1]:
                        connection.execute(statement)
                    connection.execute(f"pragma application_id = {_APPLICATION}")
                    connection.execute(f"pragma user_version = {VERSION}")
                    rows = settings.items()
                    connection.executemany("insert into settings values (?, ?)", rows)
        (application,) = self._connection.execute("pragma application_id").fetchone()
        (version,) = self._connection.execute("pragma user_version").fetchone()
        if application != _APPLICATION:
            raise InputError(f"{self.path} is no index: it is a database of another program")
        if version != VERSION:
            raise InputError(
                f"{self.path} is an index of version {version}, and this program reads version "
                f"{VERSION}: use the one that made it, or add the documents to a new index"
            )
        # A commit survives a killed process; one right before a power cut may be undone as a whole.
        self._connection.execute("pragma synchronous = normal")
        return dict(self._connection.execute("select name, value from settings"))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, of which all or nothing is kept."""
        with self._lock, self._errors():
            self._connection.execute("begin immediate")
            try:
                yield self._connection
                self._connection.execute("commit")
            except BaseException:
                self._connection.execute("rollback")
                raise

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Reads of one state of the index, whatever other processes write in the meantime."""
        with self._lock, self._errors():
            self._connection.execute("begin")
            try:
                yield
            finally:
                self._connection.rollback()

    def _rows(self, statement: str, values: Sequence[object] = ()) -> list[tuple]:
        with self._lock, self._errors():
            return self._connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors, of a full disk or a file that is locked or damaged, as OSError."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise OSError(f"{self.path}: {error}") from error

    def documents(self) -> list[StoredDocument]:
        """All documents, sorted by source."""
        rows = self._rows(
            "select source, digest, count(chunks.id) from documents "
            "left join chunks on document = documents.id group by documents.id order by source"
        )
        return [StoredDocument(*row) for row in rows]

    def digests(self, sources: Sequence[str]) -> dict[str, str]:
        """The digests of those of the documents that are there."""
        statement = "select source, digest from documents where source = ?"
        return dict(row for source in sources for row in self._rows(statement, (source,)))

    def put(
        self,
        source: str,
        digest: str,
        text: str,
        chunks: Sequence[Chunk],
        vectors: np.ndarray | None,
    ) -> None:
        """Stores a document, in the place of the one of that source if there is one."""
        with self._writing() as connection:
            _remove(connection, source)
            document = connection.execute(
                "insert into documents (source, digest, text) values (?, ?, ?)",
                (source, digest, text),
            ).lastrowid
            for i, chunk in enumerate(chunks):
                vector = None if vectors is None else vectors[i].astype(np.float16).tobytes()
                number = connection.execute(
                    "insert into chunks (document, start, end, heading, page, vector) "
                    "values (?, ?, ?, ?, ?, ?)",
                    (document, chunk.start, chunk.end, chunk.heading, chunk.page, vector),
                ).lastrowid
                terms = index_terms(f"{chunk.heading}\n{text[chunk.start : chunk.end]}")
                connection.execute("insert into terms (rowid, body) values (?, ?)", (number, terms))
            connection.execute("update changes set count = count + 1")

    def remove(self, sources: Sequence[str]) -> None:
        """Removes documents, all or none."""
        with self._writing() as connection:
            for source in sources:
                _remove(connection, source)
            connection.execute("update changes set count = count + 1")

    def full_text_query(self, question: str) -> str:
        """The FTS5 query of a question."""
        return " OR ".join(match_terms(question))

    def matching(self, question: str, k: int) -> Ranked:
        """The `k` best chunks by BM25 with Lucene's idf, k1 = 1.5 and b = 0.75."""
        times = Counter(match_terms(question))
        with self._snapshot():
            total = self._num_chunks()
            found = [(*self._term_scores(term, total), count) for term, count in times.items()]
        if not any(len(ids) for ids, _, _ in found):
            return []
        totals = np.bincount(
            np.concatenate([ids for ids, _, _ in found]),
            np.concatenate([count * scores for _, scores, count in found]),
        )
        ids = np.flatnonzero(totals)
        best = ids[np.argsort(-totals[ids], kind="stable")[:k]]
        return list(zip(best.tolist(), totals[best].tolist(), strict=True))

    def _num_chunks(self) -> int:
        """How many chunks there are; forgets what is kept of an index that has changed."""
        ((changes,),) = self._rows("select count from changes")
        if self._frequent[0] != changes:
            ((total,),) = self._rows("select count(*) from chunks")
            self._frequent = changes, total, {}
        return self._frequent[1]

    def _term_scores(self, term: str, total: int) -> _Scores:
        """The chunks of `total` that have a term, and what it adds to the score of each.

        FTS5's bm25() gives a term that half of the chunks have no weight, so its idf is replaced.
        The terms that a tenth of the chunks have are few and take most of the time: their scores
        are kept until some process changes the index.
        """
        kept = self._frequent[2]
        if term in kept:
            return kept[term]
        rows = self._rows(_TERM_RANKS, (term,))
        ids = np.fromiter((number for number, _ in rows), np.int64, len(rows))
        ranks = np.fromiter((rank for _, rank in rows), np.float64, len(rows))
        odds = (total - len(rows) + 0.5) / (len(rows) + 0.5)
        fts5_idf = math.log(odds) if odds > 1 else 1e-6
        scores = ranks * (math.log1p(odds) / fts5_idf / _FTS5_FACTOR)
        if len(rows) > total / 10:
            kept[term] = ids, scores
        return ids, scores

    def nearest(self, vector: np.ndarray, k: int) -> Ranked:
        """The `k` chunks whose vectors have the largest dot product with `vector`, (dim,)."""
        ids, vectors = self._all_vectors()
        if not len(ids):
            return []
        if vectors.shape[1] != len(vector):
            raise InputError(
                f"the index has vectors of {vectors.shape[1]} numbers, and the question's has "
                f"{len(vector)}: it was made with another model"
            )
        scores = vectors @ vector.astype(np.float32)
        best = np.argsort(-scores, kind="stable")[:k]
        return [(int(ids[i]), float(scores[i])) for i in best]

    def _all_vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids and float32 vectors, (n,) and (n, dim), kept until some process changes the index."""
        with self._lock:
            ((changes,),) = self._rows("select count from changes")
            if self._vectors is None or self._vectors[0] != changes:
                rows = self._rows("select id, vector from chunks where vector not null order by id")
                ids = np.array([number for number, _ in rows], dtype=np.int64)
                blob = b"".join(vector for _, vector in rows)
                vectors = np.frombuffer(blob, np.float16).reshape(len(ids), -1 if rows else 0)
                # float16 products have no fast kernel in numpy
                self._vectors = changes, ids, vectors.astype(np.float32)
            return self._vectors[1:]

    def chunks(self, ids: Iterable[int]) -> dict[int, StoredChunk]:
        """Those chunks that are still there."""
        statement = (
            "select source, substr(text, start + 1, end - start), start, end, heading, page "
            "from chunks join documents on documents.id = document where chunks.id = ?"
        )
        found = ((number, self._rows(statement, (number,))) for number in ids)
        return {number: StoredChunk(*rows[0]) for number, rows in found if rows}

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()


def _remove(connection: sqlite3.Connection, source: str) -> None:
    statement = "select chunks.id from chunks join documents on documents.id = document "
    numbers = connection.execute(f"{statement} where source = ?", (source,)).fetchall()
    connection.executemany("delete from terms where rowid = ?", numbers)
    connection.executemany("delete from chunks where id = ?", numbers)
    connection.execute("delete from documents where source = ?", (source,))
