"""`llama rag eval`: metrics against their definitions, and a file of questions."""

import json
import math
import random
import re
from pathlib import Path

import pytest

from examples import retrieval_facts
from examples.tiny_data.fillers import NAMES, TABLES
from examples.tiny_data.turns import Source
from llama.cli import main
from llama.errors import InputError
from llama.retrieval.rag_evaluation import answer_metrics, ranking_metrics, read_questions

QUESTIONS = {
    "documents": [
        {"id": 1, "text": "The museum opens at 10:15."},
        {"id": 2, "title": "Pool", "text": "The pool opens at 8:00."},
        {"id": 3, "text": "Mia lives in Oslo."},
    ],
    "queries": [
        {"id": "a", "text": "When does the museum open?", "document": 1, "answers": ["10:15"]},
        {"id": "b", "text": "When does the pool open?", "answers": ["8:00."]},
        {"id": "c", "text": "Where does Nora live?"},
    ],
    "relevance": [["b", 2]],
}


def test_ranking_metrics() -> None:
    found = ranking_metrics(["x", "a", "y", "b"], frozenset("abc"))
    assert found["recall@1"] == 0
    assert found["recall@5"] == pytest.approx(2 / 3)
    assert found["MRR"] == 0.5
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert found["nDCG@10"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / ideal)
    assert ranking_metrics(["x"], frozenset("a"))["MRR"] == 0


def test_answer_metrics() -> None:
    assert answer_metrics("The pool opens at 8:00!", ["the pool opens at 8:00."])["exact"] == 1
    found = answer_metrics("It opens at 8:00.", ["8:00", "no"])
    assert found == {"exact": 0, "contains": 1, "F1": pytest.approx(2 * 2 / 7)}
    assert answer_metrics("在北京大学。", ["北京大学"])["contains"] == 1
    assert answer_metrics("", ["8:00"]) == {"exact": 0, "contains": 0, "F1": 0}


def test_a_file_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bm25s")
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(QUESTIONS))
    flags = ["--rerank", "likelihood", "--answers", "--bm25s", "--device", "cpu"]
    main(["rag", "eval", str(file), *flags, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["documents"], report["chunks"], report["queries"]) == (3, 3, 3)
    rows = report["retrieval"]
    assert list(rows) == ["bm25s", "BM25", "likelihood"]
    assert all(row["recall@1"] == row["MRR"] == row["nDCG@10"] == 1 for row in rows.values())
    answers = report["answers"]["BM25"]
    assert {**answers, "F1": 0} == {
        **{"found": 1, "exact": 0, "F1": 0, "contains": 1},
        **{"cited": 1, "precision": 1, "unknown": 1},
    }
    main(["rag", "eval", str(file)])
    assert "3 documents in 3 passages, 3 questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"relevance": [["b", 7]]}, "1 of 2 pairs .* the first one query b, document 7"),
        ({"relevance": [["z", 1]]}, "the first one query z, document 1"),
        ({"documents": 3}, "is no file of questions"),
        ({"queries": [{"id": "b"}]}, "is no file of questions"),
    ],
)
def test_files_that_can_not_be_measured(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(QUESTIONS | change))
    with pytest.raises(InputError, match=reason):
        read_questions(str(file))


def test_facts_are_in_one_document_each_or_in_none() -> None:
    content = retrieval_facts.facts_file(20)
    texts = {document["id"]: document["text"] for document in content["documents"]}
    assert len(texts) == 20
    known = [query for query in content["queries"] if "document" in query]
    assert len(known) == 20
    assert len(content["queries"]) == 24
    endings = "|".join(retrieval_facts.ENDINGS)
    for query in content["queries"]:
        subjects = re.findall(rf"(?:{endings})\b", query["text"].lower())
        assert subjects
        holders = [id for id, text in texts.items() if any(s in text.lower() for s in subjects)]
        assert holders == ([query["document"]] if query in known else [])
    for query in known:
        sentence, value = query["answers"]
        assert value.lower() in sentence.lower()
        assert value.lower() in texts[query["document"]].lower()
    assert content == retrieval_facts.facts_file(20)


def test_names_in_facts_are_no_names_in_training() -> None:
    listed = {word.lower() for table in TABLES.values() for item in table for word in item.split()}
    assert not listed & {*retrieval_facts.ENDINGS}
    source = Source(random.Random(1), ("lumbago",), [])
    trained = {source.pick(kind).lower() for kind in NAMES for _ in range(500)}
    assert len(trained) > 1000
    assert not {word for name in trained for word in name.split()} & {*retrieval_facts.ENDINGS}
