"""All kinds of documents, by name, and dialogs in which several skills meet."""

from collections.abc import Callable, Mapping

from examples.tiny_data import (
    drills,
    facts,
    letters,
    personas,
    remembered,
    stories,
    style,
    sums,
    talk,
    told,
    tools,
)
from examples.tiny_data.tool_prompts import ToolDialog
from examples.tiny_data.turns import Source, Turn, dialog_of
from llama import Message

SYSTEM_PROMPTS = (
    "",
    "",
    "",
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are a friendly assistant who answers questions.",
    "You are a tiny Llama.",
    "Be kind and helpful.",
    "You are an assistant. Answer the user's questions as well as you can.",
    "You are a chatbot on a small computer.",
)
_PLAIN: tuple[tuple[float, Callable[[Source], Turn]], ...] = (
    (0.1, facts.turn),
    (0.3, facts.short_turn),
    (0.2, sums.turn),
    (0.15, letters.turn),
    (0.2, talk.turn),
    (0.05, talk.limits_turn),
)


def plain(source: Source) -> Turn:
    """A turn of any skill that needs nothing before it."""
    shares = [share for share, _ in _PLAIN]
    make: Callable[[Source], Turn] = source.rng.choices([make for _, make in _PLAIN], shares)[0]
    return make(source)


def mixed(source: Source) -> list[Message]:
    """Two to five turns of different skills."""
    turns = [plain(source) for _ in range(source.rng.randint(2, 5))]
    return dialog_of(source.rng.choice(SYSTEM_PROMPTS), turns)


Made = list[Message] | ToolDialog | str

MAKERS: Mapping[str, Callable[[Source], Made]] = {
    "sums as texts": drills.sums,
    "letters as texts": drills.letters,
    "looked up": drills.looked_up,
    "copied": drills.copied,
    "told": facts.text,
    "alike": facts.alike,
    "free": facts.free,
    "told before": lambda source: told.dialog(source, plain),
    "facts": facts.dialog,
    "sums": sums.dialog,
    "letters": letters.dialog,
    "style": lambda source: style.dialog(source, plain),
    "remembered": lambda source: remembered.dialog(source, plain),
    "tools": lambda source: tools.dialog(source, plain),
    "stories": stories.dialog,
    "talk": talk.dialog,
    "personas": personas.dialog,
    "mixed": mixed,
}
