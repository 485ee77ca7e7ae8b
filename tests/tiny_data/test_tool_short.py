import json
import random
import re
from functools import cache
from itertools import pairwise

from examples.tiny_data import fillers
from examples.tiny_data.tool_prompts import NO_TOOL
from examples.tiny_data.tool_short import again, functions, request
from examples.tiny_data.tool_short_dialogs import needless, short
from examples.tiny_data.turns import Source

WORDS = [word.lower() for word in fillers.THINGS + fillers.COUNTED] + ["blorp", "frindle", "mosk"]


def source(seed: int) -> Source:
    return Source(random.Random(seed), WORDS, ["A story."])


@cache
def requests() -> list[tuple[str, dict, dict[str, dict]]]:
    """Requests, the calls that they lead to, and the functions that are offered."""
    made, found = source(2), []
    for _ in range(3000):
        offers = functions(made)
        each = request(made, made.rng.choice(offers))
        shown = [one.definition(made)["function"] for one in offers]
        found.append((each.text, json.loads(each.call()), {one["name"]: one for one in shown}))
        assert len(shown) == len(found[-1][2])
    return found


def listed_values(schema: dict) -> set[str]:
    """What a definition enumerates, be it in its description."""
    said = re.sub(r"^(One of|Either|May be):? ", "", schema.get("description", ""))
    return {*schema.get("enum", ()), *re.split(r", | or ", said)}


def test_arguments_are_copied():
    exact = 0
    for text, call, offered in requests():
        properties = offered[call["name"]]["parameters"]["properties"]
        for name, value in call["parameters"].items():
            if isinstance(value, bool):
                continue
            for each in value if isinstance(value, list) else [value]:
                assert str(each) in text or each in listed_values(properties[name])
                exact += str(each) in text
    assert exact > 4000


def test_calls_fit_the_definition():
    types = {"string": str, "boolean": bool, "integer": int, "number": int, "array": list}
    for _, call, offered in requests():
        parameters = offered[call["name"]]["parameters"]
        assert set(parameters.get("required", ())) <= call["parameters"].keys()
        assert call["parameters"].keys() <= parameters["properties"].keys()
        for name, value in call["parameters"].items():
            schema = parameters["properties"][name]
            assert type(value) is types[schema["type"]]
            assert value in schema.get("enum", [value])
            assert value not in ([], "")


def test_requests_are_many_and_filled_in():
    texts = [text for text, _, _ in requests()]
    assert len(set(texts)) > 2900
    for text in texts:
        assert not re.search(r"[{}]|\?\?|\.\.|  ", text), text
    names = {call["name"] for _, call, _ in requests()}
    assert len(names) > 700


def test_lists_of_every_length_occur():
    lists = [v for _, call, _ in requests() for v in call["parameters"].values() if type(v) is list]
    assert {len(each) for each in lists} == {1, 2, 3, 4}
    assert len(lists) > 200


def test_a_follow_up_changes_one_argument():
    made, seen = source(4), 0
    for _ in range(500):
        first = request(made, made.rng.choice(functions(made)))
        second = again(made, first)
        if second is None:
            continue
        seen += 1
        (changed,) = (key for key, value in second.values.items() if value != first.values[key])
        value = second.values[changed]
        for each in value if isinstance(value, list) else [value]:
            assert str(each).lower() in second.text.lower()
    assert seen > 300


def test_results_of_several_values_are_told_in_full():
    made, seen = source(3), 0
    for _ in range(1500):
        messages = short(made).messages
        for result, answer in pairwise(messages):
            if result["role"] != "ipython" or not result["content"].startswith("{"):
                continue
            value = json.loads(result["content"])
            for key in ("output", "result", "data"):
                value = value.get(key, value)
                if not isinstance(value, dict):
                    break
            if isinstance(value, dict) and len(value) > 1 and "status" not in value:
                seen += 1
                for each in value.values():
                    assert str(each) in answer["content"]
    assert seen > 150


def test_what_needs_no_tool_has_no_call():
    made = source(5)
    for _ in range(300):
        for message in needless(made):
            assert not message["content"].startswith('{"name"')
    answers = [short(made).messages[-1]["content"] for _ in range(1000)]
    assert 10 < answers.count(NO_TOOL) < 150


def test_the_same_seed_makes_the_same_dialogs():
    one, two = source(6), source(6)
    assert [short(one) for _ in range(30)] == [short(two) for _ in range(30)]
