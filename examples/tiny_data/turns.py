"""What all generators of dialogs share: a turn with its answer in several lengths, and fillers."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from examples.tiny_data.fillers import FILLERS, NAMES, with_end
from llama import Message

UNKNOWN = "I don't know."


class Exhausted(LookupError):
    """A generator has no filler left: begin the dialog again."""


@dataclass(frozen=True)
class Turn:
    """A question and its answer; also in one word, in at most three, in a sentence, if there is.

    `free` says that other answers are as good (small talk).
    """

    question: str
    answer: str
    word: str | None = None
    few: str | None = None
    sentence: str | None = None
    free: bool = False

    @staticmethod
    def unknown(question: str) -> "Turn":
        return Turn(question, UNKNOWN, "Unknown.", UNKNOWN, UNKNOWN)


@dataclass(frozen=True)
class Source:
    """What dialogs are made from: always the same ones for the same state of `rng`.

    words    to spell, and for names that nobody has heard
    stories  texts of stories
    strange  share of names that end with one of `words`. Names that are always of the same few
             hundred come to be chosen among those, and one that is none of them is misspelled
    """

    rng: random.Random
    words: Sequence[str]
    stories: Sequence[str]
    strange: float = 0.4

    def pick(self, kind: str) -> str:
        """A filler of a kind, such as "town"; `fillers.FILLERS` has them all."""
        filler = FILLERS[kind](self.rng)
        if kind in NAMES and self.rng.random() < self.strange:
            return with_end(filler, self.rng.choice(self.words))
        return filler

    def fresh(self, kind: str, text: str) -> str:
        """A filler that does not occur in a text. Raises Exhausted where it is hard to find one."""
        for _ in range(50):
            filler = self.pick(kind)
            if filler.lower() not in text.lower():
                return filler
        raise Exhausted(f"no {kind} is left that does not occur in: {text}")


def forms(text: str) -> tuple[str, ...]:
    """Ways to say something, each on a line of its own."""
    return tuple(line.strip() for line in text.strip().splitlines() if line.strip())


def capital(text: str) -> str:
    """The text, beginning with a capital letter."""
    return text[:1].upper() + text[1:]


def dialog_of(system: str, turns: Iterable[Turn]) -> list[Message]:
    """The messages of a system prompt, if there is one, and turns."""
    dialog = list[Message]()
    if system:
        dialog.append({"role": "system", "content": system})
    for turn in turns:
        dialog.append({"role": "user", "content": turn.question})
        dialog.append({"role": "assistant", "content": turn.answer})
    return dialog
