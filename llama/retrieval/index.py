"""`Index`: documents in one file, to be searched and asked.

    index = Index.open("notes.db", "llama3.2:3b")
    index.add(["notes/", "report.pdf"])
    index.add({"memo": "The museum opens at 10:15."})
    for hit in index.search("When does the museum open?", k=3, rerank="likelihood"):
        print(hit.score, hit.place, hit.text)
    print(index.answer("When does the museum open?"))

A search takes candidates from BM25, and from vectors where the index has them; joins the rankings
by reciprocal rank; and lets the model rank the best of them again, if `rerank` says how.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np

from llama import console
from llama.checkpoint.opening import open_checkpoint
from llama.dialog import Message
from llama.errors import InputError, InputTypeError, message
from llama.generation import Llama
from llama.retrieval.adding import Added, AddError, absolute, files, named_texts
from llama.retrieval.chunking import split_document
from llama.retrieval.grounding import (
    NOT_FOUND,
    Answer,
    Explanation,
    Hit,
    Stage,
    fit_prompt,
    grounded_answer,
    support_requests,
)
from llama.retrieval.index_settings import check_settings, new_settings
from llama.retrieval.parsing import Document
from llama.retrieval.passage_scores import PASSAGE_SCORES, Reader, Rerank
from llama.retrieval.sqlite_store import SqliteStore
from llama.retrieval.store import Ranked, Store, StoredDocument
from llama.retrieval.text_vectors import Embed, EmbeddingServer, unit_rows
from llama.storage.files import expand

CANDIDATES = 50  # of each of BM25 and vectors
RERANKED = 20
MAX_GEN_LEN = 256
_RRF_K = 60
_EMBED_BATCH = 64  # chunks


class Index:
    """Documents that can be searched and asked; see the module.

    Several threads, and several processes each with their own `Index`, may use one file.
    """

    def __init__(
        self,
        store: Store,
        load: Callable[[], Llama],
        count_tokens: Callable[[], Callable[[str], int]],
        embed: Embed | None = None,
    ) -> None:
        """Of parts; see `open`. `load` and `count_tokens` are called when they are needed."""
        self.store = store
        self._load, self._counter = load, count_tokens
        self._embed = embed
        self._reader: Reader | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: str | Path | Llama | None = None,
        *,
        embed: Literal["model"] | EmbeddingServer | Embed | None = None,
        chunk_tokens: int | None = None,
        must_exist: bool = False,
        **options: Any,
    ) -> Self:
        """The index in a file, which is made if there is none.

        model: what counts tokens, ranks and answers: a checkpoint folder, a pulled model's name
            or a loaded model. By default the one that the index was made with, which it remembers
            unless it was a loaded one; of a new index the bundled model. It is loaded when it is
            first needed.
        embed: "model" for vectors of that model, an `EmbeddingServer`, or any function from texts
            to vectors; None for BM25 alone. A new index remembers the first two.
        chunk_tokens: the most tokens of a chunk; fixed with a new index. By default 256, or an
            eighth of the model's context if that is less.
        options: of `Llama.build`, where it loads the model.

        Raises InputError for a file that is no index or has another version, and for an `embed`
        or `chunk_tokens` other than those that the index was made with, or vectors of another
        model.
        """
        is_new = not Path(expand(path)).exists()
        settings = None
        if is_new and not must_exist:
            settings = new_settings(model, embed, chunk_tokens)
        store = SqliteStore(path, settings)
        known = store.settings
        try:
            check_settings(path, known, model, embed, chunk_tokens)
        except InputError:
            store.close()
            raise
        name = known["model"] if model is None else model

        def load() -> Llama:
            return name if isinstance(name, Llama) else Llama.build(name, **options)

        def counter() -> Callable[[str], int]:
            tokenizer = (
                name.tokenizer
                if isinstance(name, Llama)
                else open_checkpoint(name).open_tokenizer(options.get("tokenizer_path"))
            )
            return lambda text: len(tokenizer.encode(text))

        index = cls(store, load, counter)
        if callable(embed):
            index._embed = embed
        elif known["embed"] == "model":
            index._embed = lambda texts: index.reader.llama.embed(texts).numpy()
        elif known["embed"]:
            url, _, its_model = known["embed"].rpartition("#")
            index._embed = EmbeddingServer(url, its_model)
        return index

    def read_by(self, reader: Reader) -> "Index":
        """The same index with a model that is loaded already; `close` closes both."""

        def count() -> Callable[[str], int]:
            return lambda text: len(reader.llama.tokenizer.encode(text))

        index = Index(self.store, lambda: reader.llama, count, self._embed)
        index._reader = reader
        if self.store.settings["embed"] == "model":
            index._embed = lambda texts: reader.llama.embed(texts).numpy()
        return index

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self.store.close()

    @property
    def reader(self) -> Reader:
        """The model, which is loaded now if it is not."""
        with self._lock:
            if self._reader is None:
                self._reader = Reader.of(self._load())
            return self._reader

    # Documents.

    def add(self, documents: str | Path | Iterable[str | Path] | Mapping[str, str]) -> Added:
        """Adds files, all documents in folders, or texts by their names; shows a progress bar.

        A document that is there already is left alone if it is the same, and else replaced. In
        folders, files that end in .txt, .md, .html or .pdf are documents; a file that is named
        itself may have any other name and is then plain text. What a folder holds besides is in
        `skipped` of the result, but for hidden files and folders, which are not looked at.

        Raises AddError for files that can't be read, after all others were added; MissingFileError
        for a path that does not exist, before anything is added.
        """
        skipped: dict[str, str] = {}
        if isinstance(documents, Mapping):
            found = named_texts(documents)
        else:
            found = files(documents, skipped)
        added, updated, unchanged = list[str](), list[str](), list[str]()
        failed: dict[str, str] = {}
        count = self._counter()
        with console.progress(len(found), "documents", any_rank=True, unit="") as bar:
            for source, candidate in found.items():
                try:
                    data = candidate.read()
                    known = self.store.digests([source]).get(source)
                    digest = hashlib.sha256(data).hexdigest()
                    document = None if digest == known else candidate.parse(data)
                except (InputError, OSError) as error:
                    failed[source] = message(error)
                else:
                    if document is None:
                        unchanged.append(source)
                    else:
                        self._put(source, document, digest, count)
                        (added if known is None else updated).append(source)
                bar.update()
        result = Added(tuple(added), tuple(updated), tuple(unchanged), failed, skipped)
        if failed:
            raise AddError(result)
        return result

    def _put(
        self, source: str, document: Document, digest: str, count: Callable[[str], int]
    ) -> None:
        size = int(self.store.settings["chunk_tokens"])
        chunks = split_document(document, count, size, size // 8)
        vectors = None
        if self._embed is not None:
            texts = [document.text[chunk.start : chunk.end] for chunk in chunks]
            batches = range(0, len(texts), _EMBED_BATCH)
            rows = [unit_rows(self._embed(texts[i : i + _EMBED_BATCH])) for i in batches]
            vectors = np.concatenate(rows)
            if len(vectors) != len(texts):
                raise InputError(f"embed gave {len(vectors)} vectors for {len(texts)} texts")
        self.store.put(source, digest, document.text, chunks, vectors)

    def remove(self, sources: str | Path | Iterable[str | Path]) -> list[str]:
        """Removes documents by their paths or names, or all below a folder; returns their sources.

        Raises InputError for a name that the index does not have, and removes nothing then.
        """
        known = [document.source for document in self.store.documents()]
        found: dict[str, None] = {}
        for name in [sources] if isinstance(sources, str | Path) else sources:
            path = str(absolute(name))
            those = [s for s in known if s in (str(name), path)]
            those = those or [s for s in known if s.startswith(path.rstrip("/") + "/")]
            if not those:
                raise InputError(
                    f"the index has no document {str(name)!r}; `list` shows what it has"
                )
            found.update(dict.fromkeys(those))
        self.store.remove(list(found))
        return list(found)

    def documents(self) -> list[StoredDocument]:
        """All documents, sorted by path or name."""
        return self.store.documents()

    # Questions.

    def search(self, question: str, k: int = 5, rerank: Rerank | None = None) -> list[Hit]:
        """The `k` passages that fit a question best, the best first; none if nothing matches.

        rerank: how the model ranks the best candidates again: "likelihood", "attention" or
            "yes_no" (see `passage_scores`).
        """
        return list(self.stages(question, k, rerank)[-1].hits[:k])

    def stages(self, question: str, k: int = 5, rerank: Rerank | None = None) -> list[Stage]:
        """Every step of a search with its candidates; the last one's are the result."""
        if not isinstance(question, str):
            raise InputTypeError(f"the question must be a string, got {question!r:.60}")
        if rerank is not None and rerank not in PASSAGE_SCORES:
            raise InputError(f"rerank is {', '.join(get_args(Rerank))} or None, not {rerank!r}")
        if k < 1:
            raise InputError(f"k must be 1 or more, got {k}")
        depth = max(k, CANDIDATES)
        rankings = {"BM25": self.store.matching(question, depth)}
        if self._embed is not None and question.strip():
            (vector,) = unit_rows(self._embed([question]))
            rankings["vectors"] = self.store.nearest(vector, depth)
            rankings["fusion"] = reciprocal_rank_fusion(list(rankings.values()))
        ids = dict.fromkeys(number for ranked in rankings.values() for number, _ in ranked)
        chunks = self.store.chunks(ids)  # another process may just have removed one
        stages = [
            Stage(
                name,
                tuple(
                    Hit(c.text, c.source, c.page, c.heading, c.start, c.end, score)
                    for number, score in ranked
                    if (c := chunks.get(number))
                ),
            )
            for name, ranked in rankings.items()
        ]
        if rerank is not None and (hits := stages[-1].hits[: max(k, RERANKED)]):
            scores = PASSAGE_SCORES[rerank](self.reader, question, [hit.text for hit in hits])
            scored = [replace(hit, score=score) for hit, score in zip(hits, scores, strict=True)]
            scored.sort(key=lambda hit: -hit.score)
            stages.append(Stage(rerank, tuple(scored)))
        return stages

    def answer(
        self,
        question: str | Sequence[Message],
        k: int = 5,
        rerank: Rerank | None = None,
        *,
        max_gen_len: int | None = None,
        **settings: Any,
    ) -> Answer:
        """The model's answer from the `k` best passages, each sentence with what supports it.

        `question` may be a dialog that ends with one, which is then what is searched for.
        `settings` are those of `Llama.chat_completion`; the temperature is 0 unless it is given.
        Nothing found, or nothing in the answer supported, gives "Not in the documents."
        Raises InputError where no passage fits into the context.
        """
        text = question if isinstance(question, str) else _last_question(question)
        hits = self.search(text, k, rerank)
        if not hits:
            return Answer(text, NOT_FOUND, False)
        llama, run = self.reader.llama, self.reader.run
        prompt = fit_prompt(llama, question, hits, self._answer_size(max_gen_len))
        request = prompt.request(llama, {"temperature": 0.0, **settings})
        run([request])
        checks = support_requests(llama, prompt, request)
        if checks:
            run(checks)
        return grounded_answer(prompt, request, checks)

    def explain(
        self,
        question: str,
        k: int = 5,
        rerank: Rerank | None = None,
        *,
        max_gen_len: int | None = None,
    ) -> Explanation:
        """How `answer` would do it: the candidates of each stage, and the exact prompt."""
        stages = tuple(self.stages(question, k, rerank))
        explanation = Explanation(question, self.store.full_text_query(question), stages)
        if not (hits := stages[-1].hits[:k]):
            return explanation
        llama = self.reader.llama
        prompt = fit_prompt(llama, question, hits, self._answer_size(max_gen_len))
        tokens = prompt.tokens(llama)
        return replace(
            explanation,
            prompt=llama.tokenizer.decode(tokens),
            prompt_tokens=len(tokens),
            hits=prompt.hits,
            left_out=prompt.left_out,
        )

    def _answer_size(self, max_gen_len: int | None) -> int:
        """By default a quarter of the context at most, so that passages fit too."""
        if max_gen_len is not None:
            return max_gen_len
        return min(MAX_GEN_LEN, self.reader.llama.engine.max_seq_len // 4)


def reciprocal_rank_fusion(rankings: Sequence[Ranked]) -> Ranked:
    """One ranking of several: each adds 1 / (60 + rank) to the score of what it ranks.

    Cormack, Clarke and Buettcher, 2009.
    """
    scores: dict[int, float] = {}
    for ranked in rankings:
        for rank, (number, _) in enumerate(ranked, 1):
            scores[number] = scores.get(number, 0.0) + 1 / (_RRF_K + rank)
    return sorted(scores.items(), key=lambda item: -item[1])


def _last_question(dialog: Sequence[Message]) -> str:
    if not dialog or dialog[-1]["role"] != "user":
        raise InputError("the last message must be the user's question")
    return dialog[-1]["content"]
