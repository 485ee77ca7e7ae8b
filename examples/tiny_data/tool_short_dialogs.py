"""Whole dialogs of short requests: calls, follow-ups, results, and what needs no call."""

from examples.tiny_data import facts, talk
from examples.tiny_data.tool_prompts import NO_TOOL, ToolDialog, offered
from examples.tiny_data.tool_short import (
    Function,
    Request,
    again,
    functions,
    made_up,
    of_table,
    request,
)
from examples.tiny_data.tool_short_values import result
from examples.tiny_data.turns import Exhausted, Source, forms
from llama import Message

_NAMES = forms(
    """
    My name is {}. What is my name?
    I am {}. Who am I?
    hi, I'm {}. what's my name?
    Hello, I am called {}. Do you know my name?
    What is my name? I am {}.
    Call me {}. How am I called?
    {} is my name. Can you repeat my name?
    I'm {}. Please tell me my name.
    """
)
# How descriptions begin of functions that tell something, and do not only do it.
_TELLING = tuple("Gets Says Finds Looks Counts Converts Translates Explains Compares".split())


def short(source: Source) -> ToolDialog:
    """One request and its call, at times more; or a question that needs no tool."""
    rng = source.rng
    offers = functions(source)
    messages = list[Message]()
    chance = rng.random()
    if chance < 0.17:
        messages += needless(source)
        if rng.random() < 0.2:
            messages += _asked(source, request(source, rng.choice(offers)), True)
    elif chance < 0.24 and (text := _unoffered(source, offers)):
        messages += _pair(text, NO_TOOL)
    else:
        messages += _called(source, offers)
    return offered(rng, messages, [each.definition(source) for each in offers])


def needless(source: Source) -> list[Message]:
    """Facts of the message, the user's name, or small talk."""
    rng = source.rng
    chance = rng.random()
    if chance < 0.55:
        while True:
            try:
                told = facts.alike(source)
            except Exhausted:
                continue
            return [each for each in told if each["role"] != "system"][: 2 * rng.randint(1, 2)]
    if chance < 0.65:
        name = source.pick("person")
        return _pair(rng.choice(_NAMES).replace("{}", name), f"Your name is {name}.")
    turn = talk.turn(source, first=True)
    return _pair(turn.question, turn.answer)


def _called(source: Source, offers: list[Function]) -> list[Message]:
    rng = source.rng
    asked = request(source, rng.choice(offers))
    chance = rng.random()
    messages = _asked(source, asked, ends_there=chance < 0.45)
    if chance > 0.75:
        following = again(source, asked) if rng.random() < 0.7 else None
        if following is None:
            following = request(source, rng.choice(offers))
        messages += _asked(source, following, ends_there=rng.random() < 0.6)
    return messages


def _asked(source: Source, asked: Request, ends_there: bool) -> list[Message]:
    messages = _pair(asked.text, asked.call())
    if not ends_there:
        is_question = asked.function.description.startswith(_TELLING)
        made = result(source, asked.function.name, is_question)
        messages.append({"role": "ipython", "content": made.content})
        messages.append({"role": "assistant", "content": made.answer})
    return messages


def _unoffered(source: Source, offers: list[Function]) -> str | None:
    """A request that has no word in common with what is offered."""
    taken = set[str]().union(*(each.words() for each in offers))
    for _ in range(8):
        other = of_table(source) if source.rng.random() < 0.5 else made_up(source)
        if not other.words() & taken:
            return request(source, other).text
    return None


def _pair(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
