"""Rules of style, in a system prompt or a user's message, and answers that follow them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from examples.tiny_data.style_rules import (
    PAIRS,
    RULES,
    STANDING,
    TEXTS,
    WEIGHTS,
    Demand,
    demand,
)
from examples.tiny_data.turns import Source, Turn, capital, dialog_of
from llama import Message

Plain = Callable[[Source], Turn]


def _renamed(one: Demand) -> Demand:
    """The same rule, its values in other places than another's."""
    core = re.sub(r"\{(.)\}", r"{\1 too}", one.core)
    values = {f"{key} too": value for key, value in one.rules[0].values.items()}
    return Demand(one.names, core, (replace(one.rules[0], values=values),))


def _two(source: Source) -> Demand:
    """Two rules that go together, in one request or in two sentences."""
    rng = source.rng
    one, other = (demand(source, name) for name in rng.sample(rng.choice(PAIRS), 2))
    other = _renamed(other)
    request = one.is_request and other.is_request
    cores = [one.core, other.core]
    if request and rng.random() < 0.6:
        core = rng.choice(("{} and {}", "{} and {}", "{}, and {}", "{} and also {}")).format(*cores)
    else:
        core = " ".join(capital(each) + "." * each[0].islower() for each in cores)
    return Demand(one.names + other.names, core, one.rules + other.rules)


def _some(source: Source) -> Demand:
    if source.rng.random() < 0.15:
        return _two(source)
    (name,) = source.rng.choices(list(RULES), [WEIGHTS.get(rule, 1) for rule in RULES])
    return demand(source, name)


def _framed(source: Source, frames: Sequence[str], core: str) -> str:
    """A request in a frame that fits it."""
    while True:
        frame = source.rng.choice(frames)
        odd = re.match(r"(never|avoid)", core) and "lways" in frame
        if not odd and not (STANDING.search(core) and "lways" in frame):
            text = frame.replace("{c}", capital(core) if frame.startswith("{c}") else core)
            return re.sub(r"(?<=[.!?\n] )\{c\}|(?<=\n)\{c\}", capital(core), text)


def typed(source: Source, text: str) -> str:
    """The text, now and then without capitals, full stop or with a slip; {x} stays as it is."""
    rng = source.rng
    kind = rng.random()
    if kind < 0.1:
        text = text.lower()
    elif kind < 0.15:
        text = text.rstrip(".!")
    elif kind < 0.2:
        text = text.lower().rstrip(".!").replace("'", "")
    elif kind < 0.24:
        words = re.findall(r"(?<!\{)\b[a-z]{5,}\b", text)
        if words:
            word = rng.choice(words)
            at = rng.randint(1, len(word) - 3)
            text = text.replace(word, word[:at] + word[at + 1] + word[at] + word[at + 2 :], 1)
    elif kind < 0.26:
        text = text.replace("please", "pls").replace("Please", "Pls")
    elif kind < 0.29:
        text = text.upper() if "{" not in text else text
    return text


def _stopped(text: str) -> str:
    """The text, with a full stop where it ends without a mark, so that more can follow."""
    return text if re.search(r"[.!?][\"'”]?$", text) else f"{text}."


def system_text(source: Source, one: Demand) -> str:
    """The rule for a system prompt, often with more around it."""
    rng = source.rng
    text = one.core
    if one.is_request:
        frames = TEXTS["frames"] + TEXTS["standing frames"]
        text = _framed(source, frames, one.core) if rng.random() < 0.8 else f"{capital(text)}."
    text = one.filled(typed(source, text))
    if rng.random() < 0.15:
        text = f"{_stopped(text)} {rng.choice(TEXTS['reasons'])}"
    if rng.random() < 0.3 and not re.match(r"you('re| are) ", text, re.IGNORECASE):
        text = f"{rng.choice(TEXTS['neutral'])} {text}"
    if rng.random() < 0.08:
        text = f"{_stopped(text)} {rng.choice(TEXTS['neutral'][14:22])}"
    return text


def _standing_text(source: Source, one: Demand) -> str:
    """The rule as users put it for all that follows."""
    text = one.core
    if one.is_request:
        text = _framed(source, TEXTS["standing frames"], one.core)
    elif not one.lasts:
        text = f"{source.rng.choice(('From now on', 'For this chat', 'New rule'))}: {one.core}"
    return one.filled(typed(source, text))


def _once_text(source: Source, one: Demand, question: str) -> str:
    """The rule and the question in one message, for this answer alone."""
    if question[-1].isalnum():
        question += "."
    if one.is_request:
        text = _framed(source, TEXTS["once frames"], one.core)
        if source.rng.random() < 0.7:
            text = text.replace("{q} " + one.core, "{q} " + capital(one.core))
        text = typed(source, text)
    else:
        text = source.rng.choice(("{q} ", "{q}\n", "")) + typed(source, one.core)
        text = text if "{q}" in text else text + " {q}"
    return one.filled(text).replace("{q}", question)


def _obeying(source: Source, one: Demand, plain: Plain, number: int) -> list[Turn] | None:
    """Turns whose answers follow the rule, or nothing where there are too few such."""
    turns = list[Turn]()
    for _ in range(number * 4):
        turn = plain(source)
        answer = one.answer(turn)
        if answer is not None:
            turns.append(replace(turn, answer=answer))
            if len(turns) == number:
                return turns
    return None


def _agreed(source: Source, one: Demand, question: str) -> Turn:
    answer = source.rng.choice(TEXTS["agree"])
    turn = Turn(question, answer, "Okay.", "Okay.", "I will do that.", free=True)
    obeying = None if "question" in one.names else one.answer(turn)
    return replace(turn, answer=obeying or "Okay.")


def _once(source: Source, plain: Plain) -> list[Turn]:
    """One to three turns, each with a rule of its own or with none."""
    rng = source.rng
    turns = list[Turn]()
    kinds = rng.choice(("r", "r", "r", "r", "r", "pr", "rp", "rr", "prp", "ppr", "rrr"))
    for kind in kinds:
        if kind == "p":
            turns.append(plain(source))
            continue
        while True:
            one = _some(source)
            made = None if one.lasts else _obeying(source, one, plain, 1)
            if made:
                break
        question = _once_text(source, one, made[0].question)
        turns.append(replace(made[0], question=question))
    return turns


def _lasting(source: Source, plain: Plain) -> list[Turn]:
    """A rule that a user gives for the rest of the talk, after other turns or as the first one."""
    rng = source.rng
    while True:
        one = _some(source)
        made = _obeying(source, one, plain, rng.choice((1, 1, 2, 3)))
        if made:
            break
    before = [plain(source) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
    text = _standing_text(source, one)
    if rng.random() < 0.5:
        return [*before, _agreed(source, one, text), *made]
    text = _stopped(text) + rng.choice((" ", " ", "\n"))
    first = replace(made[0], question=text + made[0].question)
    return [*before, first, *made[1:]]


def _ended(source: Source, plain: Plain) -> list[Turn]:
    """A rule comes to its end, or another takes its place, for the turns that follow."""
    rng = source.rng
    if rng.random() < 0.5:
        return _lasting(source, plain)
    question = rng.choice(TEXTS["stop"])
    turns = [plain(source) for _ in range(rng.choice((1, 1, 2)))]
    if rng.random() < 0.5:
        return [Turn(question, rng.choice(TEXTS["agree"][:5])), *turns]
    return [replace(turns[0], question=f"{question} {turns[0].question}"), *turns[1:]]


def dialog(source: Source, plain: Plain) -> list[Message]:
    """Questions of any kind, and a rule of style that the answers follow."""
    rng = source.rng
    kind = rng.random()
    if kind < 0.05:
        turns = [plain(source) for _ in range(rng.choice((1, 1, 2, 3)))]
        return dialog_of(rng.choice(TEXTS["neutral"]), turns)
    if kind < 0.2:
        return dialog_of(rng.choice(("", "", rng.choice(TEXTS["neutral"]))), _once(source, plain))
    if kind < 0.3:
        return dialog_of("", _lasting(source, plain))
    while True:
        one = _some(source)
        made = _obeying(source, one, plain, rng.choice((1, 1, 1, 2, 2, 3, 4)))
        if made:
            break
    if rng.random() < 0.05:
        made += _ended(source, plain)
    return dialog_of(system_text(source, one), made)
