"""Every form of a call, everything that only looks like one, and every way of cutting an answer."""

import itertools
import json
import random

import pytest
from fixtures import write_tiktoken

from llama.errors import InputError
from llama.tokenizer import Tokenizer
from llama.tool_calls import (
    CallArguments,
    CallEnd,
    CallStart,
    TextDelta,
    ToolCallParser,
    call_id_prefix,
    whole_answer,
)

TAG = "<|python_tag|>"


def function(name):
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


TOOLS = [function("add"), function("get_weather")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(write_tiktoken(tmp_path_factory.mktemp("tools") / "tokenizer.model"))


def pieces_of(answer, tokenizer, cuts=()):
    """The pieces of an answer, in which TAG between bars `|TAG|` stands for the token.

    `cuts` are the places of its text where pieces end, in addition to those around the token.
    """
    pieces, at = [], 0
    for number, text in enumerate(answer.split("|TAG|")):
        if number:
            pieces.append((tokenizer.special_tokens[TAG], TAG))
        ends = sorted({cut - at for cut in cuts if 0 < cut - at < len(text)})
        pieces += [(65, text[a:b]) for a, b in itertools.pairwise([0, *ends, len(text)])]
        at += len(text)
    return pieces


def events_of(answer, tokenizer, cuts=(), tools=TOOLS, **kwargs):
    parser = ToolCallParser(tokenizer, tools, "call_x", **kwargs)
    events = [e for piece in pieces_of(answer, tokenizer, cuts) for e in parser.feed(*piece)]
    return events + parser.finish()


def merged(events):
    """The events with neighbouring deltas joined."""
    result = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            result[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            result[-1] = CallArguments(last.index, last.delta + event.delta)
        else:
            result.append(event)
    return result


def simple(answer, tokenizer, **kwargs):
    """The text of an answer, and the name and arguments of each call."""
    text, calls = whole_answer(events_of(answer, tokenizer, **kwargs))
    called = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]
    return text, called


ADD = '{"name": "add", "parameters": {"a": 1, "b": 2}}'
WEATHER = '{"name": "get_weather", "parameters": {"city": "Oslo"}}'
ADDED, SUNNY = ("add", {"a": 1, "b": 2}), ("get_weather", {"city": "Oslo"})

CALLS = [
    (ADD, [ADDED]),
    (f"|TAG|{ADD}", [ADDED]),
    (f" \n{ADD}\n", [ADDED]),
    (f"|TAG|\n{ADD} ", [ADDED]),
    (f"\n|TAG|{ADD}", [ADDED]),
    ('{"name":"add","parameters":{"a":1,"b":2}}', [ADDED]),
    ('{\n  "type": "function",\n  "name": "add",\n  "arguments": {"a": 1, "b": 2}\n}', [ADDED]),
    ('{"parameters": {"a": 1, "b": 2}, "name": "add"}', [ADDED]),
    (ADD[:-1], [ADDED]),  # the model forgot to close the outer object
    ('{"name": "add", "parameters": {}, "id": [1, {"x": null}]}', [("add", {})]),
    ('{"name": "add", "parameters": null}', [("add", {})]),
    (f"{ADD}; {WEATHER}", [ADDED, SUNNY]),
    (f"{ADD};{WEATHER}", [ADDED, SUNNY]),
    (f"{ADD} \n ;\n\n{WEATHER};", [ADDED, SUNNY]),
    (f"{ADD}\n{WEATHER}", [ADDED, SUNNY]),
    (f"{ADD}{WEATHER}", [ADDED, SUNNY]),
    (f"{ADD}, {WEATHER}", [ADDED, SUNNY]),
    (f"|TAG|{ADD}|TAG|{WEATHER}", [ADDED, SUNNY]),
    (f"|TAG|{ADD}; |TAG|{WEATHER}", [ADDED, SUNNY]),
    (f"[{ADD}, {WEATHER}]", [ADDED, SUNNY]),
    (f"|TAG|[ {ADD} ,\n{WEATHER} ]\n", [ADDED, SUNNY]),
    (f"[{ADD}]\n[{WEATHER}]", [ADDED, SUNNY]),
    ("[add(a=1, b=2)]", [ADDED]),
    ("[add(a=1, b=2), get_weather(city='Oslo')]", [ADDED, SUNNY]),
    ("|TAG|[add(a=1, b=2)]", [ADDED]),
    (" [ add ( a = 1 , b = 2 , ) , ".replace("add (", "add(") + "get_weather( city='Oslo')]", None),
    ("[add()]", [("add", {})]),
    ("[add(a=1, b=2)\n", [ADDED]),
    ("|TAG|add(a=1, b=2)", [ADDED]),
    ('|TAG|get_weather.call(city="Oslo")', [SUNNY]),
    (
        "[add(a=(1, -2.5e3,), b=[True, False, None, true, null], c={'k': {\"l\": 'it\\'s'}})]",
        [
            (
                "add",
                {
                    "a": [1, -2500.0],
                    "b": [True, False, None, True, None],
                    "c": {"k": {"l": "it's"}},
                },
            )
        ],
    ),
    (
        "[add(a='\"\\n\\t\\x41\\u00e9\\U0001F600\\d\\\\', b=\"'é\n\")]",
        [("add", {"a": '"\n\tAé😀\\d\\', "b": "'é\n"})],
    ),
    ('{"name": "add", "parameters": {"s": "a\nb\\u00e9\\"\\\\é"}}', [("add", {"s": 'a\nbé"\\é'})]),
]


@pytest.mark.parametrize(("answer", "calls"), CALLS)
def test_calls(tokenizer, answer, calls):
    assert simple(answer, tokenizer) == ("", [ADDED, SUNNY] if calls is None else calls)


TEXTS = [
    "",
    " ",
    "Hello {name}",
    "{",
    "[",
    "[1, 2, 3]",
    "[add]",
    "[add(1, 2)]",  # no names of arguments
    "[add(a+1)]",
    "[remove(a=1)]",
    '{"a": 1}',
    '{"name": "remove", "parameters": {}}',
    '{"name": "add"}',
    '{"name": "add", "parameters": [1]}',
    '{"name": "add", "parameters": "{}"}',
    '{"name": "add", "x": 1, "parameters": {}}',
    '{"type": "tool", "name": "add", "parameters": {}}',
    '{"parameters": {"a": 1}, "name": "remove"}',
    '{"parameters": {"a": tru}, "name": "add"}',
    "{'name': 'add', 'parameters': {}}",
    '{"name": "add", "parameters": nil}',
    "add(a=1, b=2)",
    'get_weather.call(city="Oslo")',
    f"I would call {ADD}",
    f"Certainly!\n{ADD}",
    f"{TAG}{ADD}",  # spelled, not the token
    f"```json\n{ADD}\n```",
    f'"{ADD}"',
    "|TAG|print(1)",
    "|TAG|import math\nprint(math.pi)",
    "|TAG|",
    "|TAG||TAG|",
    "I'll see.|TAG|remove(a=1)",
    "|TAG|{}",
]


@pytest.mark.parametrize("answer", TEXTS)
def test_what_is_no_call_comes_back_as_it_was(tokenizer, answer):
    exact = answer.replace("|TAG|", TAG)
    events = events_of(answer, tokenizer)
    assert "".join(event.text for event in events) == exact


MIXED = [
    (f"{ADD}\n\nI have called it: {WEATHER}", f"\n\nI have called it: {WEATHER}", [ADDED]),
    (f"{ADD}; and then", "; and then", [ADDED]),
    (f'{ADD}; {{"name": "remove", "parameters": {{}}}}', None, [ADDED]),
    (f"{ADD}}}", "}", [ADDED]),
    (f"Let me see. |TAG|{ADD}", "Let me see. ", [ADDED]),
    (f"|TAG|print(1)|TAG|{ADD}", f"{TAG}print(1)", [ADDED]),
    ("[add(a=1, b=2), remove(c=3)]", ", remove(c=3)]", [ADDED]),
    ("[add(a=1, b=2), get_weather(city=Oslo)]", ", get_weather(city=Oslo)]", [ADDED]),
]


@pytest.mark.parametrize(("answer", "text", "calls"), MIXED)
def test_text_beside_calls(tokenizer, answer, text, calls):
    expected = answer[len(ADD) :] if text is None else text
    assert simple(answer, tokenizer) == (expected, calls)


BROKEN = [
    '{"name": "add", "parameters": {"a": 1',
    '{"name": "add", "parameters": {"a": "x',
    '{"name": "add", "parameters": {"a": 01}} and more',
    '{"name": "add", "parameters": {"a": 1,}}',
    '{"name": "add", "parameters": {a: 1}}',
    '{"name": "add", "parameters": {"a": "\\q"}}',
    '{"name": "add", "parameters": {"a": True}}',
    '{"name": "add", "parameters": {"a": "x|TAG|"}}',
    f'{{"name": "add", "parameters": {{"a": {"[" * 200}{"]" * 200}}}}}',
    f'{{"name": "add", "parameters": {{"a": {"1" * 5000}}}}}',
    "[add(a=1, b=",
    "[add(a=f'x')]",
    "[add(a=1, a=2)]",
    "[add(a=x)]",
    "[add(a='\\777')]",
    "[add(a='\\UFFFFFFFF')]",
    "[add(a=__import__('os'))]",
]


@pytest.mark.parametrize("answer", BROKEN)
def test_a_call_that_breaks_off_is_text_of_the_whole_answer(tokenizer, answer):
    events = events_of(answer, tokenizer)
    assert isinstance(events[0], CallStart)
    assert next(e for e in events if isinstance(e, CallEnd)).call is None
    assert whole_answer(events) == (answer.replace("|TAG|", TAG), [])


def test_the_name_comes_first_and_then_the_arguments(tokenizer):
    parser = ToolCallParser(tokenizer, TOOLS, "call_x")
    assert parser.feed(65, '{"name": "add"') == []
    assert parser.feed(65, ', "parameters":') == []
    assert parser.feed(65, " {") == [CallStart(0, "call_x_0", "add"), CallArguments(0, "{")]
    assert parser.feed(65, '"a"') == [CallArguments(0, '"a"')]
    assert parser.feed(65, ': "é') == [CallArguments(0, ': "é')]
    assert parser.feed(65, '"}') == [CallArguments(0, '"}')]
    call = {
        "id": "call_x_0",
        "type": "function",
        "function": {"name": "add", "arguments": '{"a": "é"}'},
    }
    assert [(e.index, e.call) for e in parser.feed(65, "}")] == [(0, call)]
    assert parser.finish() == []


def test_plain_text_is_not_held_back(tokenizer):
    parser = ToolCallParser(tokenizer, TOOLS, "call_x")
    assert parser.feed(65, "Once") == [TextDelta("Once")]
    assert parser.feed(65, " {") == [TextDelta(" {")]
    assert parser.feed(None, "\ufffd") == [TextDelta("\ufffd")]
    assert parser.finish() == []


@pytest.mark.parametrize("answer", [ADD, f"Let me see. {ADD}", f"{ADD} and more"])
def test_an_answer_may_have_begun(tokenizer, answer):
    for size in range(len(answer) + 1):
        parser = ToolCallParser(tokenizer, TOOLS, "call_x", start=answer[:size])
        events = parser.feed(65, answer[size:]) + parser.finish()
        assert merged(events) == merged(events_of(answer, tokenizer))


def test_calls_in_a_single_piece_and_across_all_cuts(tokenizer):
    """All places of one and of two cuts, every character alone, and random ones."""
    rng = random.Random(1)
    answers = [answer for answer, *_ in CALLS + MIXED] + TEXTS + [b for b in BROKEN if len(b) < 99]
    for answer in answers:
        size = len(answer.replace("|TAG|", ""))
        whole = merged(events_of(answer, tokenizer))
        places = list(range(1, size))
        cuts = [(), places, *((place,) for place in places)]
        pairs = list(itertools.combinations(places, 2))
        cuts += rng.sample(pairs, min(len(pairs), 60))
        cuts += [[p for p in places if rng.random() < 0.3] for _ in range(20)]
        for cut in cuts:
            assert merged(events_of(answer, tokenizer, cut)) == whole


def test_every_call_is_announced_filled_and_ended(tokenizer):
    for answer, *_ in CALLS + MIXED:
        _, calls = whole_answer(events := merged(events_of(answer, tokenizer)))
        starts = [e for e in events if isinstance(e, CallStart)]
        deltas = {e.index: e.delta for e in events if isinstance(e, CallArguments)}
        assert [s.index for s in starts] == list(range(len(starts)))
        for start, call in zip(starts, calls, strict=False):
            assert (start.id, start.name) == (call["id"], call["function"]["name"])
            assert deltas[start.index] == call["function"]["arguments"]


def test_the_tag_ends_an_incomplete_character(tokenizer):
    parser = ToolCallParser(tokenizer, TOOLS, "call_x")
    events = parser.feed(tokenizer.special_tokens[TAG], f"\ufffd{TAG}")
    events += parser.feed(65, ADD) + parser.finish()
    assert whole_answer(events)[0] == "\ufffd"
    assert len(whole_answer(events)[1]) == 1


def test_builtin_tools(tokenizer):
    answer = '|TAG|brave_search.call(query="gold")'
    assert simple(answer, tokenizer)[1] == []
    called = simple(answer, tokenizer, tools=None, builtin_tools=["brave_search"])
    assert called == ("", [("brave_search", {"query": "gold"})])
    with pytest.raises(InputError, match="no built-in tool 'google'"):
        ToolCallParser(tokenizer, None, "x", builtin_tools=["google"])


def test_ids_follow_from_the_request():
    assert call_id_prefix([1, 2, 3]) == call_id_prefix(iter([1, 2, 3]))
    different = [call_id_prefix([1, 2, 3]), call_id_prefix([1, 23]), call_id_prefix([1, 2, 3], 1)]
    assert len(set(different)) == 3
    assert all(prefix.startswith("call_") for prefix in different)
