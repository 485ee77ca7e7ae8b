"""One file: words of any script, versions, several processes, and processes that are killed."""

import math
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from llama.errors import InputError, MissingFileError
from llama.retrieval.chunking import Chunk
from llama.retrieval.search_terms import match_terms
from llama.retrieval.sqlite_store import VERSION, SqliteStore

SETTINGS = {"model": "tiny", "embed": "", "chunk_tokens": "128"}


def put(store: SqliteStore, source: str, text: str, vector: np.ndarray | None = None) -> None:
    chunk = Chunk(0, len(text), "", None)
    store.put(source, text, text, [chunk], None if vector is None else vector[None])


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return SqliteStore(tmp_path / "index.db", SETTINGS)


def found(store: SqliteStore, question: str) -> list[str]:
    ranked = store.matching(question, 10)
    chunks = store.chunks(number for number, _ in ranked)
    return [chunks[number].source for number, _ in ranked]


@pytest.mark.parametrize(
    ("question", "sources"),
    [
        ("北", ["beijing"]),
        ("学", ["beijing", "tokyo"]),  # the last character of a run
        ("猫", ["cat"]),
        ("北京", ["beijing"]),
        ("大学", ["beijing", "tokyo"]),
        ("京大", ["beijing"]),
        ("北京大学", ["beijing", "tokyo"]),
        ("東京大学", ["tokyo", "beijing"]),  # all of it before a part of it
        ("検索", ["search"]),
        ("全文検索", ["search"]),
        ("テスト", ["search"]),
        ("ﾃｽﾄ", ["search"]),  # half width
        ("검색", ["korean"]),
        ("naive", ["latin"]),
        ("NAÏVE", ["latin"]),
        ("works", ["latin"]),  # by its stem
        ("Fuß", ["latin"]),
        ("猫 working", ["cat", "latin"]),
        ("", []),
        ("\"'(*)!", []),
        ("NEAR(works) AND", ["latin"]),
        ("亀", []),
    ],
)
def test_words_of_any_script_are_found(
    store: SqliteStore, question: str, sources: list[str]
) -> None:
    put(store, "beijing", "我在北京大学学习。")
    put(store, "tokyo", "東京の大学")
    put(store, "cat", "这是一只猫。")
    put(store, "search", "全文検索のテスト")
    put(store, "korean", "전문 검색을 합니다")
    put(store, "latin", "It worked: a naïve foot (Fuß).")
    assert sorted(found(store, question)) == sorted(sources)
    if question in ("東京大学", "北京大学"):
        assert found(store, question) == sources


def test_units_are_not_looked_for() -> None:
    assert match_terms("2008年5月") == match_terms("２００８年５月") == ['"2008"', '"5"']
    assert match_terms("年 2008") == ['"年" *', '"2008"']


def scores(store: SqliteStore, question: str) -> dict[str, float]:
    ranked = store.matching(question, 10**6)
    chunks = store.chunks(number for number, _ in ranked)
    return {chunks[number].source: score for number, score in ranked}


def test_scores_are_those_of_bm25s(store: SqliteStore) -> None:
    bm25s = pytest.importorskip("bm25s")
    draw = np.random.default_rng(1)
    shares = 1 / np.arange(1, 301)
    lengths = draw.integers(1, 60, 200)
    texts = [[f"w{n}" for n in draw.choice(300, k, p=shares / shares.sum())] for k in lengths]
    for i, text in enumerate(texts):
        put(store, f"{i}", " ".join([*text, "all"]))
    model = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    model.index([[*text, "all"] for text in texts], show_progress=False)
    for _ in range(20):
        asked = [f"w{n}" for n in draw.integers(0, 40, 8)]
        asked = [word for word in asked if any(word in text for text in texts)]
        asked = [*asked, *asked[:2], "w0", "all"]
        found = scores(store, " ".join(asked))
        assert len(found) == 200
        assert list(found.values()) == sorted(found.values(), reverse=True)
        expected = model.get_scores(asked)
        assert [found[f"{i}"] for i in range(200)] == pytest.approx(expected, rel=1e-5)


def test_words_that_most_chunks_have_count(store: SqliteStore) -> None:
    for i in range(8):
        put(store, f"{i}", "common other" if i < 5 else "plain other")
    put(store, "with", "rare common other words")
    put(store, "without", "rare other words")  # shorter, so better by "rare" alone
    assert found(store, "rare") == ["without", "with"]
    assert found(store, "rare common")[:2] == ["with", "without"]
    # Six of ten have it, and the mean length is 2.3.
    idf = math.log(1 + (10 - 6 + 0.5) / (6 + 0.5))
    expected = idf / (1 + 1.5 * (0.25 + 0.75 * 2 / 2.3))
    assert scores(store, "common")["0"] == pytest.approx(expected)


def test_scores_follow_changes_by_others(store: SqliteStore) -> None:
    put(store, "a", "common rare")
    before = scores(store, "common")
    other = SqliteStore(store.path)
    put(other, "b", "common words")
    put(other, "c", "more words")
    after = scores(store, "common")
    assert (list(before), sorted(after)) == (["a"], ["a", "b"])
    assert after == scores(SqliteStore(store.path), "common")
    store.remove(["a"])
    assert list(scores(other, "common rare")) == ["b"]


def test_a_replaced_document_leaves_nothing_behind(store: SqliteStore) -> None:
    put(store, "a", "old words")
    put(store, "a", "new text")
    assert (found(store, "old words"), found(store, "new")) == ([], ["a"])
    store.remove(["a"])
    assert (found(store, "new"), store.documents()) == ([], [])


def test_nearest_vectors_are_those_of_the_largest_product(store: SqliteStore) -> None:
    vectors = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    for i, vector in enumerate(vectors):
        put(store, f"{i:02}", "text", vector)
    query = vectors[7] / 2
    expected = np.argsort(-(vectors.astype(np.float16).astype(np.float32) @ query))[:5]
    ranked = store.nearest(query, 5)
    chunks = store.chunks(number for number, _ in ranked)
    assert [int(chunks[number].source) for number, _ in ranked] == expected.tolist()
    store.remove(["07"])  # what is kept in memory follows
    assert len(store.nearest(query, 50)) == 49
    with pytest.raises(InputError, match="vectors of 8 numbers, and the question's has 3"):
        store.nearest(np.zeros(3, np.float32), 5)


def test_an_index_of_another_version_says_which(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    SqliteStore(path, SETTINGS).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"pragma user_version = {VERSION + 6}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(
        InputError, match=f"index of version {VERSION + 6}.*reads version {VERSION}"
    ):
        SqliteStore(path, SETTINGS)
    assert path.read_bytes() == before


def test_other_files_are_no_index(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no database at all, but long enough to be one" * 100)
    with pytest.raises(InputError, match=r"notes\.txt is no index"):
        SqliteStore(text, SETTINGS)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("create table t (x)")
    connection.close()
    with pytest.raises(InputError, match="database of another program"):
        SqliteStore(other, SETTINGS)
    with pytest.raises(MissingFileError, match="there is no index"):
        SqliteStore(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()


def test_threads_and_connections_write_and_read_at_once(tmp_path: Path) -> None:
    stores = [SqliteStore(tmp_path / "index.db", SETTINGS) for _ in range(3)]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(20):
                put(stores[number % 3], f"{number}-{i % 7}", f"word{number} text {i}")
                stores[(number + 1) % 3].matching("text", 5)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(stores[0].documents()) == 6 * 7
    assert len(stores[1].matching("text", 100)) == 6 * 7


_WRITER = """
import sys
from llama.retrieval.chunking import Chunk
from llama.retrieval.sqlite_store import SqliteStore
store = SqliteStore(sys.argv[1], {})
for i in range(10**9):
    text = f"text {i} " * 200
    store.put(f"{i % 50}", str(i), text, [Chunk(j, j + 100, "", None) for j in range(50)], None)
    print(i, flush=True)
"""


def test_a_killed_process_loses_nothing_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    store = SqliteStore(path, SETTINGS)
    put(store, "kept", "kept text")
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, path], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    written = [int(writer.stdout.readline()) for _ in range(60)]
    writer.kill()  # SIGKILL, in the middle of whatever it does
    rest = writer.stdout.read().splitlines()
    writer.wait()
    reopened = SqliteStore(path)
    ((checked,),) = reopened._rows("pragma integrity_check")
    assert checked == "ok"
    reopened._rows("insert into terms (terms) values ('integrity-check')")
    documents = {document.source: document for document in reopened.documents()}
    assert found(reopened, "kept") == ["kept"]
    last = max([*written, *(int(line) for line in rest if line.strip())])
    for i in range(max(0, last - 49), last + 1):
        document = documents[f"{i % 50}"]
        assert int(document.digest) >= i  # what was reported is there,
        assert document.num_chunks == 50  # and whole
    assert len(reopened.matching("text", 10**6)) == 1 + 50 * 50


def test_a_damaged_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    store = SqliteStore(path, SETTINGS)
    for i in range(50):
        put(store, f"{i}", f"text {i} " * 500)
    store.close()
    data = bytearray(path.read_bytes())
    data[8192:-4096] = b"x" * len(data[8192:-4096])
    path.write_bytes(data)

    def read() -> None:
        damaged = SqliteStore(path)
        damaged.documents()
        damaged.matching("text", 5)

    with pytest.raises((OSError, InputError), match=r"index\.db"):
        read()
