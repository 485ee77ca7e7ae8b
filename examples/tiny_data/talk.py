"""Small talk, and what the model can't do or does not know."""

import re
from functools import cache
from itertools import accumulate

from examples.tiny_data.turns import UNKNOWN, Source, Turn, dialog_of
from examples.tiny_data.wording import choose, fill, groups, typed, wordings
from llama import Message

SYSTEMS = """You are a helpful assistant.
You are a [helpful|friendly|kind|nice|small|polite|good] [assistant|chatbot|Llama|model].
You are a [tiny|small] Llama[.| that likes to talk.| and always kind.]
You are an assistant [that|who] [likes to help|answers politely|talks with people|helps everybody].
Be [kind|friendly|polite|nice|helpful] [to the user|to everybody|].
[Answer|Reply] [politely|kindly|in a friendly way|in simple words].
You talk with [a child|a user|people|guests]. Be [kind|friendly|polite].
Have a [nice|friendly] chat with the user.
A [chat|conversation] between a [user|person] and a [helpful|friendly] assistant.""".splitlines()
# What may stand before and after a question about the world.
BEFORE = """Tell me:
[Hi|Hello|Hey]!
[Hi|Hello|Hey],
I have a question.
[One|Another|A quick] question:
[My teacher|My friend|My son|My mom|Somebody] asked me:
Do you know this?
[Please help me.|Can you help me?]
[So|Well|And|Now|Ok],
[I am curious.|I wonder:|I want to know:|I'd like to know:|I always wanted to know:]
For [school|my homework|a quiz|work]:
[Quiz time!|Let's see.|Next question:|Question:|Something else:]""".splitlines()
AFTER = """[Thanks!|Thank you!|Please.|Please tell me.]
Do you know[ it| that|]?
[Any|No] idea?
I [need|have] to know it[ for school| for work| today|].
[I forgot it.|I am not sure.|Nobody could tell me.|I can't remember.]
[It is important.|It is for a quiz.|I am just curious.|A short answer, please.]""".splitlines()
# What is not true where the user has told something before.
ALONE = re.compile("told me|you tell me|know you yet")
FAREWELLS = ("[Bye|Goodbye][!|.]", "Goodbye! [See you soon.|Take care.]")


@cache
def table(file: str) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """The groups of a file: what users say, and replies any of which will do."""
    return tuple(
        (
            tuple(line for line in group if line[:1] != ">"),
            tuple(line[1:].strip() for line in group if line[:1] == ">"),
        )
        for group in groups(file)
    )


def turn(source: Source, first: bool = False) -> Turn:
    """Small talk; `first` says that nothing was said before."""
    said, reply = _said(source, "talk.txt", first)
    sentence = _first_sentence(reply)
    word = re.match(r"(Yes|No)\b", reply)
    said = typed(source.rng, said)
    few = sentence if len(sentence.split()) <= 3 else None
    return Turn(said, reply, word and f"{word[1]}.", few, sentence, free=True)


def limits_turn(source: Source, first: bool = False) -> Turn:
    """A question about the world, or for what the model can't do, and that it does not or can't."""
    rng = source.rng
    said, reply = _said(source, "limits.txt", first)
    kind = rng.random()
    if kind < 0.15:
        before = choose(rng, rng.choice(BEFORE))
        joined = before.endswith(",") and not re.match(r"I\b|[A-Z][a-z]+ [A-Z]", said)
        said = f"{before} {said[:1].lower() + said[1:] if joined else said}"
    elif kind < 0.25:
        said = f"{said}{'' if said[-1] in '.?!' else '.'} {choose(rng, rng.choice(AFTER))}"
    return Turn(typed(rng, said), reply, "Unknown.", UNKNOWN, _first_sentence(reply), free=True)


def dialog(source: Source) -> list[Message]:
    """One to four exchanges of small talk, now and then what the model can't do."""
    rng = source.rng
    system = choose(rng, rng.choice(SYSTEMS)) if rng.random() < 0.2 else ""
    turns = list[Turn]()
    if rng.random() < 0.25:
        turns += _chain(source)
    for _ in range(rng.choice((0, 1, 1, 2)) if turns else rng.choice((1, 1, 2, 3, 4))):
        make = limits_turn if rng.random() < 0.25 else turn
        turns.append(make(source, first=not turns))
    if rng.random() < 0.1:
        said, reply = (choose(rng, text) for text in FAREWELLS)
        turns.append(Turn(said, reply, free=True))
    return dialog_of(system, turns)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?]) ", text)[0]


@cache
def _weighted(file: str, first: bool) -> tuple[list[tuple[str, tuple[str, ...]]], list[float]]:
    """Lines of users, each with its replies, and how often they are to occur."""
    chosen = [group for group in table(file) if first or not any(map(ALONE.search, group[1]))]
    all_lines = [(line, replies) for lines, replies in chosen for line in lines]
    weights = [
        (sum(1 for _ in wordings(line)) / len(lines)) ** 0.5
        for lines, _ in chosen
        for line in lines
    ]
    return all_lines, list(accumulate(weights))


def _said(source: Source, file: str, first: bool) -> tuple[str, str]:
    """What a user says, and a reply."""
    rng = source.rng
    lines, weights = _weighted(file, first)
    line, replies = rng.choices(lines, cum_weights=weights)[0]
    said, reply = fill(source, choose(rng, line), choose(rng, rng.choice(replies)))
    return said, reply


def _chain(source: Source) -> list[Turn]:
    """An exchange whose messages refer to each other."""
    rng = source.rng
    lines = [choose(rng, line) for line in rng.choice(groups_of_chains())]
    lines = fill(source, *lines)
    return [
        Turn(typed(rng, said), reply, free=True)
        for said, reply in zip(lines[::2], lines[1::2], strict=True)
    ]


@cache
def groups_of_chains() -> tuple[tuple[str, ...], ...]:
    """The exchanges of several messages."""
    return tuple(map(tuple, groups("chains.txt")))
