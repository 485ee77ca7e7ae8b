"""`llama rag eval`: how well an index finds what is relevant, and how well answers are grounded.

    llama rag eval cranfield.json
    llama rag eval facts.json --rerank likelihood,attention --answers

A file of questions is one JSON object:

    {"documents": [{"id": 1, "title": "...", "text": "..."}],
     "queries": [{"id": "a", "text": "...", "document": 1, "answers": ["..."]}],
     "relevance": [["a", 1]]}

Titles, `document`, `answers` and `relevance` may be missing. A query's `document` is relevant to
it, and so are those that `relevance` pairs with it; without any, nothing in the documents answers
the query. Passages are ranked; a document's rank is that of its best passage.
"""

import json
import math
import re
import sqlite3
import statistics
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from llama import console
from llama.errors import InputError
from llama.generation import Llama
from llama.retrieval.grounding import Hit
from llama.retrieval.index import CANDIDATES, Index
from llama.retrieval.passage_scores import Rerank
from llama.retrieval.search_terms import match_terms
from llama.retrieval.text_vectors import embedding_option
from llama.storage.files import read_text

_TERM = re.compile(r'"([^" ]+)"(?! \*)')


@dataclass(frozen=True)
class Query:
    """A question, the documents that are relevant to it, and its right answers."""

    text: str
    relevant: frozenset[str]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Questions:
    """Documents by their ids, and queries."""

    documents: dict[str, str]
    queries: tuple[Query, ...]


def read_questions(path: str, limit: int | None = None) -> Questions:
    """The documents of a file, and its first `limit` queries, or all.

    Raises InputError, naming what is wrong, also for relevance of documents that are not there.
    """
    try:
        content = json.loads(read_text(path))
        documents = {
            str(d["id"]): f"# {d['title']}\n\n{d['text']}" if d.get("title") else d["text"]
            for d in content["documents"]
            if (d.get("title") or d["text"]).strip()
        }
        queries = content["queries"][:limit]
        pairs = [(str(q), str(d)) for q, d in content.get("relevance", ())]
        relevant = {str(query["id"]): set[str]() for query in content["queries"]}
        pairs += [
            (str(q["id"]), str(q["document"])) for q in queries if q.get("document") is not None
        ]
        ids = {str(d["id"]) for d in content["documents"]}
        if unknown := [pair for pair in pairs if pair[1] not in ids or pair[0] not in relevant]:
            query, document = unknown[0]
            raise InputError(
                f"{path}: {len(unknown)} of {len(pairs)} pairs of relevance name a query or a "
                f"document that is not there, the first one query {query}, document {document}"
            )
        for query, document in pairs:
            relevant[query].add(document)
        found = tuple(
            Query(q["text"], frozenset(relevant[str(q["id"])]), tuple(q.get("answers", ())))
            for q in queries
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no file of questions: {error!r}") from error
    return Questions(documents, found)


def ranking_metrics(ranked: Sequence[str], relevant: frozenset[str]) -> dict[str, float]:
    """recall@1, 5, 10, MRR and nDCG@10 of documents, the best first; relevance is yes or no."""
    ranks = [rank for rank, document in enumerate(ranked, 1) if document in relevant]
    ideal = math.fsum(1 / math.log2(rank + 1) for rank in range(1, min(len(relevant), 10) + 1))
    gain = math.fsum(1 / math.log2(rank + 1) for rank in ranks if rank <= 10)
    recalls = {f"recall@{k}": sum(r <= k for r in ranks) / len(relevant) for k in (1, 5, 10)}
    return {**recalls, "MRR": 1 / ranks[0] if ranks else 0.0, "nDCG@10": gain / ideal}


def answer_metrics(answer: str, right: Sequence[str]) -> dict[str, float]:
    """Exact match, F1 over words (over characters in CJK), and whether a right answer is in it."""
    scores = [(_words(answer), _words(each)) for each in right]
    return {
        "exact": float(any(found == expected for found, expected in scores)),
        "F1": max(_f1(found, expected) for found, expected in scores),
        "contains": float(any(_contains(found, expected) for found, expected in scores)),
    }


def _words(text: str) -> list[str]:
    normal = unicodedata.normalize("NFKC", text).casefold()
    return re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+", normal)


def _contains(words: list[str], part: list[str]) -> bool:
    starts = range(len(words) - len(part) + 1)
    return bool(part) and any(words[i : i + len(part)] == part for i in starts)


def _f1(found: list[str], expected: list[str]) -> float:
    same = (Counter(found) & Counter(expected)).total()
    return 2 * same / (len(found) + len(expected)) if same else 0.0


Search = Callable[[str], list[Hit]]


def retrieval_row(search: Search, queries: Sequence[Query]) -> dict[str, float]:
    """The means of `ranking_metrics`, and the median seconds of a search."""
    rows, seconds = [], []
    with console.progress(len(queries), "questions", unit="") as bar:
        for query in queries:
            start = time.perf_counter()
            hits = search(query.text)
            seconds.append(time.perf_counter() - start)
            ranked = list(dict.fromkeys(hit.source for hit in hits))
            rows.append(ranking_metrics(ranked, query.relevant))
            bar.update()
    means = {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
    return {**means, "ms": 1000 * statistics.median(seconds)}


def answer_row(
    index: Index, queries: Sequence[Query], rerank: Rerank | None, k: int
) -> dict[str, float]:
    """How well questions are answered.

    found: the share of answerable questions with an answer; `exact`, `F1` and `contains` are over
    all of those. cited: of the answers, the share whose first source is a relevant document;
    precision: of all sources that answers name, the share that are. unknown: of questions that
    nothing answers, the share of "Not in the documents."
    """
    rows: list[dict[str, float]] = []
    cited: list[float] = []
    sources: list[float] = []
    unknown: list[float] = []
    with console.progress(len(queries), "answers", unit="") as bar:
        for query in queries:
            answer = index.answer(query.text, k, rerank)
            bar.update()
            if not query.relevant:
                unknown.append(float(not answer.is_found))
                continue
            text = answer.text if answer.is_found else ""
            rows.append({"found": float(answer.is_found), **answer_metrics(text, query.answers)})
            right = [float(hit.source in query.relevant) for hit in answer.sources]
            cited += right[:1]
            sources += right
    shares = {name: statistics.fmean(row[name] for row in rows) for name in (rows or [{}])[0]}
    for name, values in (("cited", cited), ("precision", sources), ("unknown", unknown)):
        if values:
            shares[name] = statistics.fmean(values)
    return shares


def bm25s_search(index: Index, path: Path) -> Search:
    """The library bm25s as it comes, over the passages and terms of the index's full-text search.

    Raises InputError where it is not installed.
    """
    try:
        import bm25s
    except ImportError:
        raise InputError("bm25s is not installed: pip install bm25s") from None
    connection = sqlite3.connect(path)
    connection.execute("create virtual table temp.words using fts5vocab (main, terms, instance)")
    corpus: dict[int, list[str]] = {}
    for term, number in connection.execute("select term, doc from temp.words order by doc, offset"):
        corpus.setdefault(number, []).append(term)
    ids = list(corpus)
    model = bm25s.BM25()
    model.index(list(corpus.values()), show_progress=False)
    connection.execute(
        "create virtual table temp.asked using fts5 (b, tokenize='porter unicode61')"
    )
    connection.execute(
        "create virtual table temp.asked_words using fts5vocab (temp, asked, instance)"
    )

    def search(question: str) -> list[Hit]:
        text = " ".join(_TERM.findall(" ".join(match_terms(question))))
        connection.execute("delete from temp.asked")
        connection.execute("insert into temp.asked values (?)", (text,))
        rows = connection.execute("select term from temp.asked_words order by offset").fetchall()
        known = [term for (term,) in rows if term in model.vocab_dict]
        if not known:
            return []
        numbers, scores = model.retrieve([known], k=min(CANDIDATES, len(ids)), show_progress=False)
        best = [(ids[n], float(s)) for n, s in zip(numbers[0], scores[0], strict=True) if s > 0]
        chunks = index.store.chunks(number for number, _ in best)
        found = ((chunks[number], score) for number, score in best)
        return [Hit(c.text, c.source, c.page, c.heading, c.start, c.end, s) for c, s in found]

    return search


def evaluate(
    questions: Questions,
    llama: Llama,
    reranks: Sequence[Rerank],
    embed: Any = None,
    answers: bool = False,
    k: int = 5,
    compare: bool = False,
) -> dict[str, Any]:
    """The report of `llama rag eval`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.db"
        with Index.open(path, llama, embed=embed) as index:
            start = time.perf_counter()
            index.add(questions.documents)
            report: dict[str, Any] = {
                "documents": len(questions.documents),
                "chunks": sum(document.num_chunks for document in index.documents()),
                "queries": len(questions.queries),
                "add_seconds": time.perf_counter() - start,
            }
            first = "fusion" if embed is not None else "BM25"
            searches: dict[str, Search] = {}
            if compare:
                searches["bm25s"] = bm25s_search(index, path)
            if embed is not None:
                searches["BM25"] = lambda q: list(index.stages(q)[0].hits)
                searches["vectors"] = lambda q: list(index.stages(q)[1].hits)
            searches[first] = lambda q: index.search(q, CANDIDATES)
            for name in reranks:
                searches[name] = lambda q, name=name: list(index.stages(q, rerank=name)[-1].hits)  # type: ignore[misc]
            known = [query for query in questions.queries if query.relevant]
            report["retrieval"] = {
                name: retrieval_row(search, known) for name, search in searches.items() if known
            }
            if answers:
                asked = [
                    query for query in questions.queries if query.answers or not query.relevant
                ]
                if not asked:
                    raise InputError("--answers needs queries with answers")
                report["answers"] = {
                    name or first: answer_row(index, asked, name, k) for name in (None, *reranks)
                }
    return report


def rag_eval(
    file: str,
    /,
    *,
    model: str = "tiny",
    rerank: str | None = None,
    embed: str | None = None,
    embed_model: str | None = None,
    answers: Annotated[bool, Parameter(negative="")] = False,
    bm25s: Annotated[bool, Parameter(negative="")] = False,
    limit: PositiveInt | None = None,
    k: PositiveInt = 5,
    device: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Measures search, and answers, on a file of documents and questions.

    Args:
        file: JSON object with documents, queries and relevance (see `llama.retrieval`).
        model: Checkpoint folder or pulled model.
        rerank: likelihood, attention and yes_no, those that are to be measured, joined by commas.
        embed: "model" for vectors of the model, or the address of a server (http://host/v1).
        embed_model: Name of the server's model.
        answers: Also let the model answer the questions.
        bm25s: Also measure the library bm25s over the same passages and terms.
        limit: Questions; the first ones of the file.
        k: Passages that an answer may use.
        device: cuda, mps or cpu; default: the best there is.
    """
    names = rerank.split(",") if rerank else []
    if wrong := [name for name in names if name not in get_args(Rerank)]:
        raise InputError(f"--rerank is {', '.join(get_args(Rerank))}, not {wrong[0]!r}")
    vectors = embedding_option(embed, embed_model)
    questions = read_questions(file, limit)
    llama = Llama.build(model, device=device)
    reranks = [name for name in get_args(Rerank) if name in names]
    report = {
        "file": file,
        "model": model,
        **evaluate(questions, llama, reranks, vectors, answers, k, bm25s),
    }
    if as_json:
        console.say(json.dumps(report))
        return
    console.say(
        f"{report['documents']} documents in {report['chunks']} passages, "
        f"{report['queries']} questions"
    )
    for part in ("retrieval", "answers"):
        if rows := report.get(part):
            columns = list(dict.fromkeys(name for row in rows.values() for name in row))
            lines = [
                (name, *(f"{row[column]:.3f}" if column in row else "" for column in columns))
                for name, row in rows.items()
            ]
            console.say("\n" + console.table([(part, *columns), *lines]))
