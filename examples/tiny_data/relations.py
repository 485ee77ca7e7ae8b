"""What can be said of persons, towns, things, and the questions for it."""

from dataclasses import dataclass
from pathlib import Path

from examples.tiny_data.fillers import COUNTED, TABLES


@dataclass(frozen=True, eq=False)
class Relation:
    """What can be said of a subject {s}: a value {v} of some kind, and the questions for it.

    {k} is one of `of`. Each of `says` answers each of `asks`; `who` asks for the subject.
    A question for one relation of a topic could be answered with another one: of the same subject,
    a text has one of them at most.
    """

    subject: str
    kind: str
    of: tuple[str, ...]
    says: tuple[str, ...]
    asks: tuple[str, ...]
    who: tuple[str, ...]
    topic: str = ""


def parted(line: str) -> tuple[str, ...]:
    """Ways to say something, which " / " parts."""
    return tuple(line.split(" / ")) if line else ()


def relations_of(table: str) -> tuple[Relation, ...]:
    """Relations, an empty line between two: what they say of what, statements, questions, who."""
    relations = []
    for block in table.strip().split("\n\n"):
        title, says, asks, *who = block.split("\n")
        title, _, topic = title.partition(" #")
        subject, kind = title.split(": ")
        kind, _, group = kind.partition(" of ")
        of = GROUPS[group] if group else ("",)
        ways = parted(says), parted(asks), parted("".join(who))
        relations.append(Relation(subject, kind, of, *ways, topic))
    return tuple(relations)


GROUPS = {
    "acquaintances": TABLES["acquaintances"],
    "women": TABLES["women"],
    "men": TABLES["men"],
    "pets": TABLES["pet kinds"],
    "counted": COUNTED,
    "days": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "meals": ("breakfast", "lunch", "dinner", "supper"),
}
RELATIONS = relations_of(Path(__file__).with_suffix(".txt").read_text())
SUBJECTS = tuple(relation.subject for relation in RELATIONS)
OF_SUBJECT = {kind: [r for r in RELATIONS if r.subject == kind] for kind in set(SUBJECTS)}
