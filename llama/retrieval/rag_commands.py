"""`llama rag`: an index of documents, filled, searched and asked.

    llama rag add notes.db notes/ report.pdf
    llama rag search notes.db "When does the museum open?" --rerank likelihood
    llama rag ask notes.db "When does the museum open?"
    llama rag explain notes.db "When does the museum open?"
    llama rag list notes.db
    llama rag rm notes.db report.pdf

`--json` prints one JSON object instead of text.
"""

import json
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeFloat, PositiveInt

from llama import console
from llama.errors import InputError
from llama.retrieval.adding import Added, AddError
from llama.retrieval.grounding import AnswerSentence, Hit
from llama.retrieval.index import Index
from llama.retrieval.passage_scores import Rerank
from llama.retrieval.text_vectors import embedding_option

_Flag = Annotated[bool, Parameter(negative="")]
_Json = Annotated[bool, Parameter(name="--json", negative="")]


def add(
    index: str,
    /,
    *paths: str,
    model: str | None = None,
    embed: str | None = None,
    embed_model: str | None = None,
    chunk_tokens: PositiveInt | None = None,
    as_json: _Json = False,
) -> None:
    """Adds files, and all documents in folders; changed ones are updated.

    Args:
        index: File of the index, which is made if there is none.
        paths: Text, Markdown, HTML and PDF files, and folders of them.
        model: Checkpoint folder or pulled model; default: the index's, of a new one the bundled.
        embed: "model" for vectors of the model, or the address of a server (http://host/v1); fixed
            with a new index, which is without vectors by default.
        embed_model: Name of the server's model.
        chunk_tokens: Most tokens of a chunk; fixed with a new index.
    """
    if not paths:
        raise InputError("nothing to add: name files or folders")
    with Index.open(
        index, model, embed=embedding_option(embed, embed_model), chunk_tokens=chunk_tokens
    ) as opened:
        try:
            result = opened.add(paths)
        except AddError as error:
            _say_added(error.added, as_json)
            raise
        _say_added(result, as_json)


def _say_added(added: Added, as_json: bool) -> None:
    if as_json:
        console.say(json.dumps(asdict(added), ensure_ascii=False))
        return
    for reason in added.skipped.values():
        console.notice(f"skipped {reason}")
    console.say(
        f"{len(added.added)} added, {len(added.updated)} updated, {len(added.unchanged)} unchanged"
        + f", {len(added.skipped)} skipped" * bool(added.skipped)
    )


def list_documents(index: str, /, *, as_json: _Json = False) -> None:
    """Lists the documents of an index, with the number of their chunks.

    Args:
        index: File of the index.
    """
    with Index.open(index, must_exist=True) as opened:
        documents = opened.documents()
        if as_json:
            console.say(json.dumps([asdict(d) for d in documents], ensure_ascii=False))
            return
        console.say(
            console.table([("document", "chunks"), *((d.source, d.num_chunks) for d in documents)])
        )


def rm(index: str, /, *sources: str) -> None:
    """Removes documents by their paths or names, or all below a folder.

    Args:
        index: File of the index.
        sources: Paths, names, or folders.
    """
    if not sources:
        raise InputError("nothing to remove: name documents or folders")
    with Index.open(index, must_exist=True) as opened:
        for source in opened.remove(sources):
            console.say(f"removed {source}")


def search(
    index: str,
    question: str,
    /,
    *,
    k: PositiveInt = 5,
    rerank: Rerank | None = None,
    model: str | None = None,
    as_json: _Json = False,
) -> None:
    """Finds the passages that fit a question best.

    Args:
        index: File of the index.
        question: What to look for.
        k: How many passages.
        rerank: How the model ranks the best candidates again.
        model: Checkpoint folder or pulled model; default: the index's.
    """
    with Index.open(index, model, must_exist=True) as opened:
        hits = opened.search(question, k, rerank)
        if as_json:
            console.say(json.dumps([asdict(hit) for hit in hits], ensure_ascii=False))
            return
        if not hits:
            console.say("nothing found")
        for hit in hits:
            console.say(f"{hit.score:.4g}  {hit.place}\n{_indented(hit.text)}\n")


def ask(
    index: str,
    question: str,
    /,
    *,
    k: PositiveInt = 5,
    rerank: Rerank | None = None,
    model: str | None = None,
    temperature: NonNegativeFloat = 0.0,
    max_gen_len: PositiveInt | None = None,
    seed: int | None = None,
    as_json: _Json = False,
) -> None:
    """Answers from the documents, each sentence with what supports it.

    Args:
        index: File of the index.
        question: The question.
        k: How many passages the answer may use; what does not fit into the context is left out.
        rerank: How the model ranks the best candidates again.
        model: Checkpoint folder or pulled model; default: the index's.
        temperature: 0 for the likeliest answer.
        max_gen_len: Most tokens of the answer; default: 256, at most a quarter of the context.
        seed: Of the draws, with a temperature.
    """
    with Index.open(index, model, must_exist=True) as opened:
        answer = opened.answer(
            question, k, rerank, max_gen_len=max_gen_len, temperature=temperature, seed=seed
        )
        if as_json:
            console.say(json.dumps(asdict(answer), ensure_ascii=False))
            return
        console.say(str(answer))
        if answer.is_found:
            console.say("\n" + _support_table(answer.sentences, answer.sources))
        if answer.left_out:
            console.notice(f"{len(answer.left_out)} passages did not fit into the prompt")


def _support_table(sentences: tuple[AnswerSentence, ...], sources: list[Hit]) -> str:
    """By how much each sentence's log-likelihood falls without a source, and rises with it."""
    rows: list[tuple[object, ...]] = [("sentence", "source", "drop", "alone")]
    for sentence in sentences:
        text = " ".join(sentence.text.split())
        for support in sentence.supports:
            number = f"[{sources.index(support.hit) + 1}]"
            rows.append((f"{text:.60}", number, f"{support.drop:.1f}", f"{support.alone:.1f}"))
        if not sentence.supports:
            rows.append((f"{text:.60}", "none"))
    return console.table(rows)


def explain(
    index: str,
    question: str,
    /,
    *,
    k: PositiveInt = 5,
    rerank: Rerank | None = None,
    model: str | None = None,
    max_gen_len: PositiveInt | None = None,
    as_json: _Json = False,
) -> None:
    """Shows how a question is answered: each stage's candidates and scores, and the exact prompt.

    Args:
        index: File of the index.
        question: The question.
        k: How many passages the answer may use.
        rerank: How the model ranks the best candidates again.
        model: Checkpoint folder or pulled model; default: the index's.
        max_gen_len: Most tokens of the answer.
    """
    with Index.open(index, model, must_exist=True) as opened:
        found = opened.explain(question, k, rerank, max_gen_len=max_gen_len)
        if as_json:
            console.say(json.dumps(asdict(found), ensure_ascii=False))
            return
        console.say(f"full-text query: {found.query or '(no words)'}")
        for stage in found.stages:
            console.say(f"\n{stage.name}: {len(stage.hits)} candidates")
            for hit in stage.hits:
                console.say(f"  {hit.score:9.4g}  {hit.place}: {' '.join(hit.text.split()):.60}")
        if not found.hits:
            console.say("\nno passage, so the model is not asked")
            return
        for hit in found.left_out:
            console.say(f"\nleft out of the prompt, where it does not fit: {hit.place}")
        console.say(f"\nprompt of {found.prompt_tokens} tokens, {len(found.hits)} passages:\n")
        console.say(found.prompt)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
