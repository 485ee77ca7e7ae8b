"""Tool calls in the answers of a model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextDelta:
    """New text of an answer."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """The beginning of call number `index` of an answer: its tool is known."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """New JSON text of the arguments of call number `index`."""

    index: int
    delta: str


Event = TextDelta | CallStart | CallArguments
