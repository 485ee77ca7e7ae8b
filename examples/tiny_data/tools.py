"""Dialogs with tools: calls in Llama 3.1's JSON form, what comes back, and its sentence.

Definitions stand in the prompt as this package writes them, as Hugging Face's template does, and in
forms of one's own. tools.txt has the tools that there are; others are made up.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from examples.tiny_data.fillers import FILLERS
from examples.tiny_data.tool_kinds import of_kind, word
from examples.tiny_data.tool_made_up import MadeUp, made_up
from examples.tiny_data.tool_prompts import (
    NO_TOOL,
    Result,
    ToolDialog,
    call_text,
    failure,
    offered,
    returned,
    written,
)
from examples.tiny_data.tool_short_dialogs import short
from examples.tiny_data.tool_sums import Calculator, small_sum
from examples.tiny_data.tool_table import ABILITIES, Case, Offered, OfferedAbility, tool
from examples.tiny_data.turns import Source, Turn, forms
from llama import Message
from llama.dialog import Tool, json_text

MAX_CHARS = 3000  # of a dialog

# What one is asked, another could do as well.
_GENERAL = {"search_web", "lookup_wikipedia", "search_news", "run_command", "query_database"}
# Alike, and yet another is right: offered together at times.
_PAIRS = tuple(
    tuple(pair.split())
    for pair in forms(
        """
        turn_on_light turn_off_light
        open_window close_window
        lock_door unlock_door
        start_timer stop_timer
        buy_stock sell_stock
        get_weather get_time
        sunrise sunset_time
        add_todo remove_todo list_todos
        create_note read_note delete_note
        read_file delete_file list_files
        copy_file move_file rename_file
        set_alarm delete_alarm list_alarms
        open_app close_app install_app
        turn_on turn_off
        order_status cancel_order
        send_email read_email delete_email
        add_contact find_contact delete_contact
        play_song stop_music next_song
        create_event delete_event list_events
        convert_length convert_weight
        borrow_book return_book
        add subtract multiply divide
        upload_file download_file
        create_user delete_user get_user
        get_price order_status search_products
        call_person send_message
        mute set_volume
        start_car fuel_level
        grab drop
        fly_drone land_drone
        """
    )
)
_BY_NAME = {ability.name: ability for ability in ABILITIES}
_CHATS = (
    *(("Hello!", "Hello! How can I help you?"), ("Hi", "Hi! How can I help you?")),
    *(("Thank you!", "You are welcome."), ("Thanks", "You are welcome."), ("Bye!", "Goodbye!")),
    *(("How are you?", "I am fine, thank you."), ("Good morning!", "Good morning!")),
    *(("hey there", "Hello! How can I help you?"), ("Thanks a lot.", "You are welcome.")),
    *(("Great, thank you.", "You are welcome."), ("Nice!", "I am glad to help.")),
    *(("Are you there?", "Yes, I am here."), ("OK", "Is there anything else?")),
    *(("Good night", "Good night!"), ("See you later", "Goodbye!")),
    *(("how is it going", "I am fine."), ("What's up?", "Not much. How can I help you?")),
)
_FACTS = (
    ("{a} lives in {town}.", "Where does {a} live?"),
    ("{a} comes from {town}.", "Where does {a} come from?"),
    ("{a} is {job}.", "What is {a}'s job?"),
    ("{a} has {animal}.", "Which animal does {a} have?"),
    ("{a} works in {shop}.", "Where does {a} work?"),
    ("{a} likes {food}.", "What does {a} like?"),
    ("{a} goes to {town} {transport}.", "How does {a} go to {town}?"),
    ("{a} plays {instrument}.", "What does {a} play?"),
    ("The meeting is on {day}.", "When is the meeting?"),
    ("{thing} costs {price}.", "What does {thing} cost?"),
    ("{thing} is {spot}.", "Where is {thing}?"),
    ("{a} speaks {language}.", "Which language does {a} speak?"),
    ("{a} meets {b} at {time}.", "When does {a} meet {b}?"),
)


@dataclass(frozen=True)
class Documents:
    """A search of documents, or an expert: the question is its argument as it is."""

    definition: Tool
    is_expert: bool

    def case(self, source: Source) -> Case:
        rng = source.rng
        fact, question = fact_and_question(source)
        function = self.definition["function"]
        parameter = next(iter((function["parameters"] or {})["properties"]))
        name = function["name"]
        if rng.random() < 0.08:
            result = failure(rng)
        elif self.is_expert:
            result = returned(rng, name, fact, "{r}", "answer")
        else:
            file = of_kind(source, "file")
            found: Any = {"source": file, "text": fact}
            other = {"source": of_kind(source, "file"), "text": fact_and_question(source)[0]}
            hits = [found, other] if rng.random() < 0.4 else [found]
            rng.shuffle(hits)
            content = json_text(hits if rng.random() < 0.8 else {"results": hits})
            result = Result(content, fact)
        return Case(question, name, {parameter: question}, result)


def documents(source: Source) -> Documents:
    """A search of documents, or an expert."""
    rng = source.rng
    is_expert = rng.random() < 0.3
    if is_expert:
        name = rng.choice(("lawyer", "teacher", "scientist", "ask_expert", word(source), "helper"))
        text = f"{rng.choice(('Asks', 'Answers for', 'Knows all about'))} the {word(source)}"
        meaning = "What to ask, with all that is needed to answer"
        parameter = "question"
    else:
        name = rng.choice(
            """search_documents search_documents find_passages knowledge_base ask_documents
            search_handbook retrieve lookup_document""".split()
        )
        text = rng.choice(
            (
                "Passages from documents that may answer a question, with their sources.",
                "Searches the documents",
                "Finds facts about people and things",
                "Looks up passages that answer a question",
            )
        )
        meaning = rng.choice(("What the documents are asked", "The question"))
        parameter = rng.choice(("question", "question", "query", "text"))
    properties = {parameter: {"type": "string", "description": meaning}}
    schema = {"type": "object", "properties": properties, "required": [parameter]}
    return Documents(tool(name, text, schema), is_expert)


def fact_and_question(source: Source) -> tuple[str, str]:
    """A sentence, and a question that it answers."""
    fact, question = source.rng.choice(_FACTS)
    values = {}
    for key in _holes(fact):
        kind = "person" if key in "ab" else key
        is_name = kind in ("person", "town")
        values[key] = source.pick(kind) if is_name else FILLERS[kind](source.rng)
    text = fact.format(**values)
    return text[0].upper() + text[1:], question.format(**values)


def _holes(template: str) -> list[str]:
    return [part.split("}")[0] for part in template.split("{")[1:]]


def offered_tools(source: Source) -> list[Offered]:
    """One to four tools, none of which can be mistaken for another."""
    rng = source.rng
    chance = rng.random()
    more = rng.choice((0, 0, 1, 1, 1, 2, 2, 3))
    if chance < 0.3:
        first = made_up(source)
        tools: list[Offered] = [first]
        for _ in range(more):
            tools.append(made_up(source, first if rng.random() < 0.5 else None))
    elif chance < 0.48:
        tools = [Calculator.offered(rng)]
        tools += others(source, tools, min(more, 2), arithmetic=False)
    elif chance < 0.56:
        tools = [documents(source)]
        tools += [made_up(source) for _ in range(min(more, 2))]
    elif chance < 0.72:
        names = [*rng.choice(_PAIRS)][: 1 + more or 2]
        rng.shuffle(names)
        tools = [_BY_NAME[name].offered(source) for name in names]
    else:
        tools = others(source, [], 1 + more)
        if rng.random() < 0.15:
            tools.append(made_up(source))
    kept = list[Offered]()
    for each in tools:
        names = [one.definition["function"]["name"] for one in kept]
        size = sum(len(json_text(one.definition, 4)) for one in [*kept, each])
        if each.definition["function"]["name"] not in names and (size < 2000 or not kept):
            kept.append(each)
    rng.shuffle(kept)
    return kept


def others(
    source: Source, beside: Sequence[Offered], count: int, arithmetic: bool = True
) -> list[Offered]:
    """Tools of the table that have no words of their names in common."""
    made = list[Offered]()
    taken = set[str]()
    while len(made) < count:
        ability = source.rng.choice(ABILITIES)
        general = ability.name in _GENERAL and (count > 1 or beside)
        if general or ability.words() & taken or (ability.own_skill and not arithmetic):
            continue
        taken |= ability.words()
        made.append(ability.offered(source))
    return made


def unoffered(source: Source, tools: Sequence[Offered]) -> str | None:
    """A request for a tool that is not there; None if one of `tools` could do it."""
    first = tools[0]
    if isinstance(first, MadeUp) and source.rng.random() < 0.6:
        another = made_up(source, first)
        names = {_plain(each) for each in tools}
        return None if _plain(another) in names else another.case(source).request
    abilities = [each.ability for each in tools if isinstance(each, OfferedAbility)]
    if any(ability.name in _GENERAL for ability in abilities):
        return None
    if any(isinstance(each, Documents) for each in tools):
        return None
    taken = set[str]().union(*(ability.words() for ability in abilities))
    while True:
        ability = source.rng.choice(ABILITIES)
        if ability.own_skill or ability.words() & taken:
            continue
        if ability.name in ("get_variable", "set_variable", "open_app", "convert_units"):
            continue
        return ability.offered(source).case(source).request


def _plain(tool: Offered) -> str:
    """Its name without regard to how it is written."""
    return re.sub(r"\W|_", "", tool.definition["function"]["name"]).lower()


def needless(source: Source, tools: Sequence[Offered]) -> Turn:
    """What is answered without a call: small talk, a small sum, a fact of the message."""
    rng = source.rng
    has_arithmetic = any(isinstance(each, Calculator) for each in tools) or any(
        isinstance(each, OfferedAbility) and each.ability.own_skill for each in tools
    )
    chance = rng.random()
    if chance < 0.35 and not has_arithmetic:
        return small_sum(source)
    if chance < 0.7 and not any(isinstance(each, Documents) for each in tools):
        fact, question = fact_and_question(source)
        other, _ = fact_and_question(source)
        while other.split()[:3] == fact.split()[:3]:
            other, _ = fact_and_question(source)
        context = rng.choice((fact, f"{fact} {other}", f"{other} {fact}"))
        asked = rng.choice((f"{context} {question}", f"{context}\n{question}"))
        return Turn(asked, fact)
    return Turn(*rng.choice(_CHATS), free=True)


def dialog(source: Source, plain: Callable[[Source], Turn] | None = None) -> ToolDialog:
    """A dialog in which tools are offered, of one to three questions.

    `plain` gives questions that need no tool; without it there are some of this module.
    """
    while True:
        made = short(source) if source.rng.random() < 0.4 else _dialog(source, plain)
        if sum(len(message["content"]) for message in written(made)) <= MAX_CHARS:
            return made


def _dialog(source: Source, plain: Callable[[Source], Turn] | None) -> ToolDialog:
    rng = source.rng
    tools = offered_tools(source)
    messages = list[Message]()
    rounds = rng.choice((1, 1, 1, 1, 2, 2, 3))
    for index in range(rounds):
        chance = rng.random()
        if chance < 0.12:
            asked = unoffered(source, tools)
            turn = needless(source, tools) if asked is None else Turn(asked, NO_TOOL)
            messages += _said(turn)
        elif chance < 0.22:
            own = any(
                isinstance(each, Calculator | Documents)
                or (isinstance(each, OfferedAbility) and each.ability.own_skill)
                for each in tools
            )
            turn = needless(source, tools) if plain is None or own else plain(source)
            messages += _said(turn)
        else:
            case = rng.choice(tools).case(source)
            messages += called(case, ends_there=index == rounds - 1 and rng.random() < 0.2)
    return offered(rng, messages, [each.definition for each in tools])


def called(case: Case, ends_there: bool = False) -> list[Message]:
    """The request, the call, and what comes of it unless the dialog ends there."""
    messages: list[Message] = [
        {"role": "user", "content": case.request},
        {"role": "assistant", "content": call_text(case.name, case.arguments)},
    ]
    if not ends_there:
        messages.append({"role": "ipython", "content": case.result.content})
        messages.append({"role": "assistant", "content": case.result.answer})
    return messages


def _said(turn: Turn) -> list[Message]:
    return [
        {"role": "user", "content": turn.question},
        {"role": "assistant", "content": turn.answer},
    ]
