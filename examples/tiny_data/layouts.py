"""How passages and questions stand in prompts, as people and as programs write them."""

from collections.abc import Sequence
from dataclasses import replace

from examples.tiny_data.claims import Text, sections
from examples.tiny_data.fillers import MONTHS
from examples.tiny_data.turns import Source, Turn, dialog_of
from llama import Message
from llama.retrieval.grounding import GroundedPrompt, Hit

PARTS = sections("fact_prompt_parts.txt")
PROMPTS = sections("fact_prompts.txt")[""]
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You answer questions about texts.",
    "Answer in plain English.",
    "You are a careful reader.",
    "You are an AI assistant that helps people find information.",
    "If you don't know something, say that you don't know.",
)
# Between passages, and before each: {n} is its number, {l} its letter, {d} a date, {t} a title.
MARKS = (
    *((" ", ""),) * 6,
    *(("\n", ""),) * 3,
    *(("\n\n", ""),) * 4,
    ("\n", "- "),
    ("\n", "- "),
    ("\n", "* "),
    ("\n", "• "),
    ("\n", "{n}. "),
    ("\n", "{n}) "),
    ("\n", "({l}) "),
    ("\n", "{l}) "),
    ("\n", "> "),
    ("\n\n", "## {t}\n"),
    ("\n\n", "# {t}\n\n"),
    ("\n\n", "{t}\n"),
    ("\n\n", "**{t}**\n"),
    ("\n\n", "{d}: "),
    ("\n", "{d} - "),
    ("\n\n", "{d}\n"),
)
SOURCES = (
    ("\n", "[{n}] "),
    ("\n\n", "[{n}] "),
    ("\n\n", "[{n}]\n"),
    ("\n", "Source {n}: "),
    ("\n\n", "Source {n}:\n"),
    ("\n\n", "Document {n}\n"),
    ("\n\n", "Document [{n}] {t}\n"),
    ("\n\n", "Passage {n}: "),
    ("\n\n", "Text {l}: "),
    ("\n", "({l}) "),
    ("\n\n", "--- {t} ---\n"),
    ("\n\n", "Title: {t}\nContent: "),
    ("\n\n", "file_{n}.txt:\n"),
    ("\n---\n", ""),
    ("\n\n---\n\n", ""),
    ("\n", '<source id="{n}">{p}</source>'),
    ("\n", '<source id="{n}" name="{t}">{p}</source>'),
    ("\n", "<source>{p}</source>"),
    ("\n", "<source><source_id>{n}</source_id><source_context>{p}</source_context></source>"),
    ("\n", '<document index="{n}">\n{p}\n</document>'),
    ("\n", "<doc>{p}</doc>"),
    ("\n\n", "Score: 0.{n}7\n"),
)
_OPENERS = frozenset(
    "at can could do does from how in is on the to was what what's when when's where where's "
    "which who who's whose with would".split()
)
TITLES = (
    "About the neighbors|About us|Announcements|At home|At work|Chapter 2|Daily life|Details|"
    "Diary|Family and friends|From the town|General|In short|Introduction|Local news|"
    "Miscellaneous|News|Notes|Old notes|Other things|Overview|Page 3|Part one|People|"
    "Questions and answers|Report|Small talk|Some facts|Summary|The latest|The story so far|"
    "This and that|This week|Today|Travel|What we know|Who is who"
).split("|")


def joined(source: Source, text: Text) -> str:
    """The text as one piece, its passages marked in some way."""
    if text.is_laid_out:
        return "\n\n".join(text.passages)
    rng = source.rng
    many = len(text.passages) > 1 and rng.random() < 0.4
    joint, mark = rng.choice(SOURCES if many else MARKS)
    first = rng.choice((1, 1, 1, 2))
    titles = rng.sample(TITLES, min(len(text.passages), len(TITLES)))
    parts = []
    for i, passage in enumerate(text.passages):
        date = f"{rng.choice(MONTHS)} {rng.randint(1, 28)}" if "{d}" in mark else ""
        filled = mark.replace("{n}", str(first + i)).replace("{l}", "abcdefghijklmnopqrst"[i % 20])
        filled = filled.replace("{t}", titles[i % len(titles)]).replace("{d}", date)
        parts.append(filled.replace("{p}", passage) if "{p}" in mark else filled + passage)
    return joint.join(parts)


def in_prompt(source: Source, context: str, question: str) -> str:
    """A user's message with a text and a question."""
    rng = source.rng
    if rng.random() < 0.45:
        return _asking(rng.choice(PROMPTS), question).replace("{c}", context)
    wrapped = rng.choice(PARTS["marks"]).replace("{c}", context)
    is_first = rng.random() < 0.2
    asked = _asking(rng.choice(PARTS["questions"][: 14 if is_first else None]), question)
    parts = [asked, wrapped] if is_first else [wrapped, asked]
    if rng.random() < 0.6:
        parts.insert(0, rng.choice(PARTS["intros"]))
    if rng.random() < 0.25:
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(PARTS["unsure"]))
    if rng.random() < 0.1:
        parts.append(rng.choice(PARTS["answers"]))
    return rng.choice(("\n\n", "\n\n", "\n")).join(parts)


def _asking(form: str, question: str) -> str:
    """The form with the question, which goes on after a comma."""
    if ", {q}" in form and question.split()[0].lower() in _OPENERS:
        question = question[:1].lower() + question[1:]
    return form.replace("{q}", question)


def in_system(source: Source, context: str) -> str:
    """A system prompt with a text."""
    rng = source.rng
    system = rng.choice(PARTS["systems"]).replace("{c}", context)
    if rng.random() < 0.1:
        system += "\n\n" + rng.choice(PARTS["unsure"])
    return system


def some_system(source: Source) -> str:
    """None mostly, or a short one without a text."""
    rng = source.rng
    if rng.random() < 0.88:
        return ""
    return rng.choice((*SYSTEMS, *PARTS["unsure"][:10]))


def retrieved(text: Sequence[str], turns: Sequence[Turn]) -> list[Message]:
    """What `llama rag` gives the model: the passages stand before the last question."""
    *earlier, last = turns
    dialog = dialog_of("", earlier)
    dialog.append({"role": "user", "content": last.question})
    hits = tuple(Hit(passage, "", None, "", 0, 0, 0.0) for passage in text)
    answer: Message = {"role": "assistant", "content": last.answer}
    return [*GroundedPrompt(dialog, hits, (), 0).messages(), answer]


def laid_out(source: Source, text: Text, turns: Sequence[Turn]) -> list[Message]:
    """A dialog in which the text stands somewhere before the answer that it is needed for."""
    rng, (first, *others) = source.rng, turns
    kind = rng.random()
    if kind < 0.22 and len(turns) == 1:
        return retrieved(_chunks(source, text), turns)
    context = joined(source, text)
    if kind < 0.45:
        return dialog_of(in_system(source, context), turns)
    if kind < 0.52:
        told = rng.choice(PARTS["told"]).replace("{c}", context)
        start = Turn(told, rng.choice(PARTS["replies"]))
        between = [some_thanks(source) for _ in range(rng.choice((0, 0, 1, 1, 2)))]
        return dialog_of(some_system(source), [start, *between, *turns])
    question = in_prompt(source, context, first.question)
    rest = [replace(turn) for turn in others]
    if rest and rng.random() < 0.15:
        rest.insert(rng.randrange(len(rest) + 1), some_thanks(source))
    return dialog_of(some_system(source), [replace(first, question=question), *rest])


def some_thanks(source: Source) -> Turn:
    """A word between questions."""
    said, reply = source.rng.choice(PARTS["thanks"]).split("|")
    return Turn(said, reply, free=True)


def _chunks(source: Source, text: Text) -> list[str]:
    """The passages as an index of documents has them: some joined, some under a heading."""
    rng = source.rng
    if rng.random() < 0.4:
        return ["\n\n".join(text.passages)]
    chunks = []
    for passage in text.passages:
        heading = f"# {rng.choice(TITLES)}\n\n" if rng.random() < 0.15 else ""
        chunks.append(heading + passage)
    return chunks
