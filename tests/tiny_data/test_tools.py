import ast
import json
import operator
import random
import re
from functools import cache
from itertools import pairwise

import pytest

from examples.tiny_data import fillers
from examples.tiny_data.tool_prompts import NO_TOOL, written
from examples.tiny_data.tool_sums import PROBLEMS
from examples.tiny_data.tool_table import ABILITIES, as_order, camel, is_order, misspelled
from examples.tiny_data.tools import MAX_CHARS, dialog
from examples.tiny_data.turns import Source, Turn
from llama import Message

WORDS = [word.lower() for word in fillers.THINGS + fillers.COUNTED] + ["blorp", "frindle", "mosk"]


def source(seed: int) -> Source:
    return Source(random.Random(seed), WORDS, ["A story."])


@cache
def dialogs(count: int = 1500) -> list[list[Message]]:
    made = source(1)
    return [written(dialog(made)) for _ in range(count)]


def objects(text: str) -> list[dict]:
    """All JSON objects that stand in a text, those of lists too."""
    found, place = [], 0
    decoder = json.JSONDecoder()
    while (place := text.find("{", place)) >= 0:
        try:
            value, place = decoder.raw_decode(text, place)
            found.append(value)
        except ValueError:
            place += 1
    return found


def offered(messages: list[Message]) -> dict[str, dict]:
    """The functions that the prompt offers."""
    prompt = ""
    for message in messages:
        if message["role"] == "assistant":
            break
        prompt += message["content"] + "\n"
    functions = [each.get("function", each) for each in objects(prompt)]
    return {each["name"]: each for each in functions if isinstance(each.get("name"), str)}


def calls() -> list[tuple[list[Message], int, dict]]:
    """Each call with its dialog and its place in it."""
    return [
        (messages, place, json.loads(message["content"]))
        for messages in dialogs()
        for place, message in enumerate(messages)
        if message["role"] == "assistant" and message["content"].startswith('{"name"')
    ]


def value_of(expression: str) -> float:
    """What a sum comes to."""
    signs = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
    signs[ast.Div] = operator.truediv

    def value(node):
        if isinstance(node, ast.BinOp):
            return signs[type(node.op)](value(node.left), value(node.right))
        return node.value

    return value(ast.parse(expression, mode="eval").body)


def is_sum(call: dict) -> bool:
    return any(
        isinstance(value, str) and re.fullmatch(r"[\d(][\d+*/() -]*[*/+-] [\d+*/() -]+", value)
        for value in call["parameters"].values()
    )


def test_a_call_names_an_offered_tool_and_its_parameters():
    for messages, _, call in calls():
        function = offered(messages)[call["name"]]
        schema = function["parameters"]
        assert set(schema.get("required", ())) <= call["parameters"].keys()
        assert call["parameters"].keys() <= schema["properties"].keys()
        for name, value in call["parameters"].items():
            kind = schema["properties"][name]
            types = {"string": str, "boolean": bool, "integer": int, "number": int, "array": list}
            assert type(value) is types[kind["type"]]
            assert value in kind.get("enum", [value])


def test_arguments_stand_in_the_request():
    for messages, place, call in calls():
        asked = [each["content"] for each in messages[:place] if each["role"] == "user"]
        request = "\n".join(asked).lower()  # a follow-up leaves out what stays as it is
        for value in call["parameters"].values():
            if isinstance(value, bool):
                continue
            if is_sum(call):
                numbers = [n for n in re.findall(r"\d+", value) if n not in ("2", "100")]
                assert all(number in request for number in numbers)
            else:
                for each in value if isinstance(value, list) else [value]:
                    assert str(each).lower() in request


def test_calls_are_written_as_json_writes_them():
    for messages, place, call in calls():
        assert messages[place]["content"] == json.dumps(call, ensure_ascii=False)
        assert list(call) == ["name", "parameters"]


def test_answers_say_what_the_tool_returned():
    seen = 0
    for messages, place, _ in calls():
        if place + 1 == len(messages):
            continue
        result, answer = messages[place + 1], messages[place + 2]
        assert (result["role"], answer["role"]) == ("ipython", "assistant")
        if answer["content"].startswith("The tool failed"):
            assert answer["content"].removeprefix("The tool failed: ")[:-1] in result["content"]
            seen += 1
        elif re.search(r"(?i)\berror\b(?!\": null)", result["content"]):
            pytest.fail(f"{result['content']} is an error: {answer['content']}")
    assert seen > 50


def test_scalar_results_are_copied():
    copied = 0
    for messages, place, _ in calls():
        if place + 2 < len(messages):
            content, answer = (messages[place + i]["content"] for i in (1, 2))
            try:
                value = json.loads(content)
            except ValueError:
                continue
            if isinstance(value, dict) and value.keys() & {"output", "result"} == value.keys():
                (value,) = value.values()
                if type(value) in (int, float):
                    assert str(value) in answer
                    copied += 1
    assert copied > 30


def test_sums_are_right():
    right = 0
    for messages in dialogs():
        for message in messages:
            found = re.fullmatch(r"([\d+*/() -]+) = (-?[\d.]+)\.", message["content"])
            if found and message["role"] == "assistant":
                assert float(found[2]) == pytest.approx(value_of(found[1]), abs=1e-4)
                right += 1
    assert right > 100


def test_nothing_is_left_to_fill_in():
    for messages in dialogs():
        for message in messages:
            assert not re.search(r"\{[a-zA-Z_]\w*\}", message["content"])
            assert message["content"].strip()


def test_roles_alternate_and_dialogs_are_short():
    for messages in dialogs():
        roles = [message["role"] for message in messages if message["role"] != "system"]
        assert roles[0] == "user"
        assert roles[-1] == "assistant"
        assert all(a != b for a, b in pairwise(roles))
        assert sum(len(message["content"]) for message in messages) <= MAX_CHARS


def test_both_places_of_definitions_are_frequent():
    in_system = sum('"name":' in m[0]["content"] and m[0]["role"] == "system" for m in dialogs())
    assert 0.3 < in_system / len(dialogs()) < 0.7


def test_some_requests_have_no_tool():
    answers = [m["content"] for ms in dialogs() for m in ms if m["role"] == "assistant"]
    assert 0.03 < answers.count(NO_TOOL) / len(answers) < 0.2


def test_the_same_seed_makes_the_same_dialogs():
    one, two = source(5), source(5)
    assert [dialog(one) for _ in range(20)] == [dialog(two) for _ in range(20)]
    assert dialog(source(6)) != dialog(source(7))


def test_plain_turns_are_the_callers():
    made = source(3)
    answers = [
        m["content"] for _ in range(200) for m in written(dialog(made, lambda _: Turn("q?", "abc")))
    ]
    assert "abc" in answers


def test_the_table_has_many_tools_and_wordings():
    assert len(ABILITIES) == len({ability.name for ability in ABILITIES}) >= 250
    for ability in ABILITIES:
        holes = {p.name for p in ability.parameters}
        required = {p.name for p in ability.parameters if not p.optional}
        assert len(set(ability.requests)) >= 4
        for request in ability.requests:
            named = set(re.findall(r"\{(\w+)\}|\[(\w+)=", request))
            assert required <= {a or b for a, b in named} <= holes
    assert len(PROBLEMS) >= 150


def test_forms_of_words():
    assert camel("get_weather_now") == "getWeatherNow"
    assert as_order("Searches the web") == "Search the web"
    assert as_order("Copies a file") == "Copy a file"
    assert is_order("Play {title}.")
    assert not is_order("I want {title}.")
    assert misspelled(random.Random(1), "{hello} please") in ("{hello} pelase", "{hello} plaese")
