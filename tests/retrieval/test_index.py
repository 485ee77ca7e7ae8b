"""Documents come, change and go; searches, with and without the model."""

import json
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from llama.errors import InputError, InputTypeError, MissingFileError
from llama.generation import Llama
from llama.retrieval import AddError, EmbeddingServer, Index
from llama.retrieval.index import reciprocal_rank_fusion

FACTS = {
    "people": "Mia lives in Oslo. She is a pilot.\n\nTom lives in Fairhaven.",
    "museum": "# Museum\nThe museum opens at 10:15. The ticket costs 14 dollars.",
    "pool": "The pool opens at 8:00.",
}


@pytest.fixture
def index(tmp_path: Path, bundled: Llama) -> Iterator[Index]:
    with Index.open(tmp_path / "notes.db", bundled) as index:
        index.add(FACTS)
        yield index


def letters(texts: Sequence[str]) -> np.ndarray:
    """A vector of how often each letter occurs."""
    return np.array([[t.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts])


def test_changed_documents_are_updated_and_others_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "a.txt").write_text("hidden")
    (folder / "a.txt").write_text("first")
    (folder / "sub" / "b.md").write_text("# Title\nsecond")
    (folder / "c.bin").write_bytes(b"\0")
    a, b = str(folder / "a.txt"), str(folder / "sub" / "b.md")
    with Index.open(tmp_path / "notes.db") as index:
        first = index.add(folder)
        assert (first.added, first.updated, first.unchanged) == ((a, b), (), ())
        assert list(first.skipped) == [str(folder / "c.bin")]
        (folder / "a.txt").write_text("other words")
        again = index.add([folder, folder / "a.txt"])
        assert (again.added, again.updated, again.unchanged) == ((), (a,), (b,))
        assert index.search("first") == []
        (hit,) = index.search("second")
        assert (hit.source, hit.heading, hit.page) == (b, "Title", None)
        assert hit.text == "# Title\nsecond" == (folder / "sub" / "b.md").read_text()
        assert (hit.start, hit.end) == (0, 14)
        assert index.remove(folder / "sub") == [b]
        assert [document.source for document in index.documents()] == [a]


def test_files_that_can_not_be_read_are_reported_and_others_added(tmp_path: Path) -> None:
    files = {"good.txt": b"good text", "bad.txt": b"\0\1", "empty.md": b"", "bad.pdf": b"%PDF-1.7"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with Index.open(tmp_path / "notes.db") as index:
        with pytest.raises(AddError, match="3 not added, the others are in the index") as caught:
            index.add(tmp_path)
        assert list(caught.value.added.added) == [str(tmp_path / "good.txt")]
        assert {Path(name).name for name in caught.value.added.failed} == {*files} - {"good.txt"}
        # A broken version leaves the good one in place.
        (tmp_path / "good.txt").write_bytes(b"\0")
        with pytest.raises(AddError, match=r"good\.txt: it is no text"):
            index.add(tmp_path / "good.txt")
        assert [hit.text for hit in index.search("good")] == ["good text"]


def test_wrong_arguments(index: Index, tmp_path: Path) -> None:
    for call, kind, reason in (
        (lambda: index.add("nowhere"), MissingFileError, "nowhere: there is no such file"),
        (lambda: index.add({"": "text"}), InputError, "name of a text is empty"),
        (lambda: index.add({"a": "\ud800"}), InputError, "a: half a surrogate pair at character 0"),
        (lambda: index.add({"\udc80": "text"}), InputError, "half a surrogate pair in the name"),
        (lambda: Index.open(tmp_path / "notes.db"), InputError, "made with a loaded model"),
        (lambda: index.add({"a": 3}), InputTypeError, "texts are"),
        (lambda: index.remove(["pool", "nothing"]), InputError, "no document 'nothing'"),
        (lambda: index.search("x", k=0), InputError, "k must be 1 or more"),
        (lambda: index.search("x", rerank="magic"), InputError, "rerank is likelihood, attention"),
        (lambda: index.search(3), InputTypeError, "the question must be a string"),
        (lambda: Index.open(tmp_path / "notes.db", embed="model"), InputError, "was made with"),
        (lambda: Index.open(tmp_path / "notes.db", chunk_tokens=20), InputError, "chunks of 128"),
        (lambda: Index.open(tmp_path / "none.db", must_exist=True), MissingFileError, "no index"),
    ):
        with pytest.raises(kind, match=reason):
            call()
    assert len(index.documents()) == 3


def test_a_folder_is_no_prefix_of_other_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("one")
    (tmp_path / "ab.txt").write_text("two")
    with Index.open(tmp_path / "notes.db") as index:
        index.add(tmp_path)
        assert index.remove(tmp_path / "a") == [str(tmp_path / "a" / "x.txt")]


@pytest.mark.parametrize("rerank", [None, "likelihood", "attention", "yes_no"])
def test_the_model_ranks_again(index: Index, rerank: str | None) -> None:
    stages = index.stages("When does the museum open?", rerank=rerank)
    assert [stage.name for stage in stages] == ["BM25"] + [rerank] * (rerank is not None)
    assert {hit.source for hit in stages[-1].hits} == {"museum", "pool"}
    scores = [hit.score for hit in stages[-1].hits]
    assert scores == sorted(scores, reverse=True)
    if rerank != "yes_no":  # which the bundled model is too small for
        assert stages[-1].hits[0].source == "museum"


def test_likelihood_is_that_of_rerank(index: Index, bundled: Llama) -> None:
    question = "When does the museum open?"
    hits = index.search(question, rerank="likelihood")
    assert [hit.score for hit in hits] == bundled.rerank(question, [hit.text for hit in hits])


def test_vectors_and_bm25_are_fused(tmp_path: Path) -> None:
    texts = {"a": "xylophone", "b": "phone", "c": "nothing alike"}
    with Index.open(tmp_path / "notes.db", embed=letters) as index:
        index.add(texts)
        stages = {stage.name: stage.hits for stage in index.stages("phone")}
        assert [hit.source for hit in stages["BM25"]] == ["b"]
        assert [hit.source for hit in stages["vectors"]][:2] == ["b", "a"]
        assert stages["vectors"][0].score == pytest.approx(1, abs=1e-3)
        assert stages["fusion"][0].score == pytest.approx(2 / 61)
        assert [hit.source for hit in index.search("phone")][:2] == ["b", "a"]
    with pytest.raises(InputError, match="has vectors of a function"):
        Index.open(tmp_path / "notes.db")


def test_vectors_of_the_model(tmp_path: Path, bundled: Llama) -> None:
    with Index.open(tmp_path / "notes.db", bundled, embed="model") as index:
        index.add(FACTS)
    with Index.open(tmp_path / "notes.db", bundled) as index:  # it remembers
        hits = index.stages("The pool opens at 8:00.")[1].hits
        assert (hits[0].source, hits[0].score) == ("pool", pytest.approx(1, abs=2e-3))


def test_vectors_of_one_model_are_not_asked_by_another(tmp_path: Path) -> None:
    Index.open(tmp_path / "notes.db", "tiny", embed="model").close()
    Index.open(tmp_path / "notes.db", "tiny").close()
    with pytest.raises(InputError, match="has vectors of the model tiny, which other can't ask"):
        Index.open(tmp_path / "notes.db", "other")


def test_vectors_of_a_server(tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert (self.path, body["model"]) == ("/v1/embeddings", "letters")
            rows = [r.tolist() for r in letters(body["input"])]
            data = [{"index": i, "embedding": row} for i, row in reversed([*enumerate(rows)])]
            found = json.dumps({"data": data}).encode()
            self.send_response(401 if "refuse" in body["input"] else 200)
            self.end_headers()
            self.wfile.write(found)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        embed = EmbeddingServer(f"http://127.0.0.1:{server.server_port}/v1", "letters")
        with Index.open(tmp_path / "notes.db", embed=embed) as index:
            index.add({"a": "xylophone", "b": "phone"})
        with Index.open(tmp_path / "notes.db") as index:  # it remembers, but for the key
            assert [hit.source for hit in index.stages("phone")[1].hits] == ["b", "a"]
            with pytest.raises(OSError, match="status 401"):
                index.add({"c": "refuse"})
            assert len(index.documents()) == 2
    finally:
        server.shutdown()
        server.server_close()


def test_reciprocal_rank_fusion() -> None:
    fused = reciprocal_rank_fusion([[(1, 9.0), (2, 8.0)], [(2, 0.3), (3, 0.2), (1, 0.1)]])
    assert [number for number, _ in fused] == [2, 1, 3]
    assert [score for _, score in fused] == pytest.approx(
        [1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62]
    )


def test_long_questions_and_odd_characters(index: Index) -> None:
    long = " ".join(f"word{i}" for i in range(20_000)) + " museum"
    assert [hit.source for hit in index.search(long)] == ["museum"]
    for question in ("\0", "\ud800", "museum\0\udfff", "*" * 5000, "猫" * 3000):
        assert len(index.search(question)) == ("museum" in question)


def test_a_name_that_is_no_utf8_is_reported(tmp_path: Path) -> None:
    name = bytes(tmp_path) + b"/caf\xe9.txt"
    try:
        with open(name, "w") as file:
            file.write("text")
    except OSError:
        pytest.skip("this file system has no such names")
    with Index.open(tmp_path / "notes.db") as index:
        with pytest.raises(AddError, match="its name is not UTF-8"):
            index.add(tmp_path)
        assert index.documents() == []
