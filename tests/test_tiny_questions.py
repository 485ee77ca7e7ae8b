"""The questions written by hand for the bundled model, and how its answers are judged."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples import tiny_questions
from examples.tiny_questions import Question, read_questions
from examples.tiny_questions.__main__ import main
from examples.tiny_questions.judging import CHECKS, judged
from llama.tokenizer import ChatFormat, Tokenizer

FILES = sorted(tiny_questions.FOLDER.glob("*.jsonl"))
TINY = Path(__file__).parents[1] / "params" / "tiny"

LEAST = {
    **{"facts": 50, "missing": 30, "sums": 40, "one_digit": 25, "spelling": 30, "counting": 30},
    **{"style": 35, "tools": 40, "remembered": 30, "stories": 20, "talk": 25, "persona": 15},
    "limits": 15,
}
STORY = (
    "One day Mira found two red kites in the park. She ran home to show them to Tom. Tom was glad "
    "and said that Mira was lucky. They flew high above the trees all day, and in the evening they "
    "both came home tired and very happy."
)
WEATHER = {"name": "get_weather", "arguments": {"city": "Oslo"}}
SUM = {"name": "calculator", "arguments": {"expression": "23 * 17"}}
TIMER = {"name": "set_timer", "arguments": {"minutes": 5, "loud": True, "days": ["Mon", "Tue"]}}


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "parameters": arguments})


JUDGED = [
    # key, wanted, right answers, wrong answers
    ("any", ["Rome", "Oslo"], ["She lives in rome."], ["She lives in Romeville.", ""]),
    ("all", ["tea", "milk"], ["Milk and tea."], ["Milk.", "Steam and milk."]),
    ("none", ["Rome"], ["Romans.", "Oslo"], ["It is ROME!"]),
    (
        *("number", 1062),
        ["1,000 + 62 = 1062.", "1,062", "So it is 1062.0", "9-1062"],
        ["1062 - 62 = 1000", "-1062", "1 062", "", "ten"],
    ),
    ("number", -3, ["4 - 7 = -3."], ["4 - 7 = 3.", "4-3", "none"]),
    (
        *("count", 2),
        ["K-I-T(1)-T(2)-E-N\nThe letter t is found 2 times.", "Twice.", "There are two of them."],
        ["K-I-T(1)-T(2)-E-N\nThe letter t is found 1 time.", "Three.", "none"],
    ),
    (
        *("unknown", True),
        [
            *("I don't know.", "I don’t know.", "The text does not say.", "Unknown.", "not sure"),
            *("It isn't mentioned.", "There is no information about it.", "You haven't told me."),
            *("That is not given in the text.", "I can't tell.", "The list doesn't even say."),
            *("I am too small to know.", "I cannot look into the future.", "I have no phone."),
            *("Butter isn't on the list.", "There is no butter on this list.", "It says nothing."),
            *("I have not learned that.", "That is beyond me.", "I was not told her age."),
        ],
        [
            *("Mia lives in Rome.", "He can't swim.", "She is not in Rome.", "", "I know it: 7."),
            *("She doesn't have a dog.", "I will remember that.", "He knows Tom."),
        ],
    ),
    (
        *("spelled", "tree"),
        [
            "T-R-E-E",
            "It is t r e e.",
            "T, R, E, E",
            "T.R.E.E.",
            "Tree: T - R - E - E!",
            "t\nr\ne\ne",
        ],
        [
            "tree",
            "T-R-E",
            "T-R-E-E-S",
            "T-R-E-E-s",
            "T-R-E-es",
            "T-R E-E",
            "A T R E E",
            "tr-ee",
            "",
        ],
    ),
    (
        *("call", WEATHER),
        [
            call("get_weather", city="Oslo"),
            call("get_weather", city=" oslo."),
            call("get_weather", city="the Oslo"),
        ],
        [
            *(call("get_weather", city="Os"), call("get_weather", town="Oslo"), "Oslo", ""),
            *(call("weather", city="Oslo"), call("get_weather", city="Oslo", unit="C"), "[1]"),
            *('{"name": "get_weather", "parameters": "Oslo"}', '{"name": "get_weather"}'),
        ],
    ),
    (
        *("call", SUM),
        [call("calculator", expression="17*23"), call("calculator", expression="23 × 17")],
        [call("calculator", expression="23 + 17"), call("calculator", expression="23 * ")],
    ),
    (
        *("call", TIMER),
        [
            call("set_timer", minutes=5, loud=True, days=["mon", "tue"]),
            call("set_timer", minutes="5", loud="true", days=["Mon", "Tue"]),
        ],
        [
            call("set_timer", minutes=50, loud=True, days=["Mon", "Tue"]),
            call("set_timer", minutes=5, loud=False, days=["Mon", "Tue"]),
            call("set_timer", minutes=5, loud=True, days=["Mon"]),
        ],
    ),
    (
        *("call", [WEATHER, SUM]),
        [call("get_weather", city="Oslo"), call("calculator", expression="391")],
        [call("get_weather", city="Rome")],
    ),
    ("no_call", True, ["It is 5."], [call("get_weather", city="Oslo"), '{"name": "get_', ""]),
    ("upper", True, ["IT IS 5."], ["It IS 5.", "5"]),
    ("lower", True, ["it is 5."], ["It is 5.", "5"]),
    ("starts", "Sure", ["Sure, it is."], ["I am sure."]),
    ("ends", "Over.", ["It is. OVER."], ["Over. It is.", "It is over"]),
    ("max_words", 3, ["It - is five."], ["It is five now.", ""]),
    ("min_words", 3, ["It is five."], ["Five, yes."]),
    (
        *("max_sentences", 1),
        ["It costs 3.50 here.", "It is", "Oh, yes!"],
        ["It is. It was.", "Is it? No", ""],
    ),
    ("matches", r"^\d+$", ["42"], ["It is 42"]),
    (
        *("story", {"hero": "Mira", "things": ["kite", "leaf", "party"]}),
        [STORY + " A leaf fell at the party.", STORY + " Leaves fell. Mom went to parties."],
        [
            STORY,
            STORY.replace("kite", "kitten") + " A leaf fell at the party.",
            STORY.replace("Mira", "Tom") + " A leaf fell at the party.",
            STORY + " A leaf fell at the party of Tom.",
            "Mira and Mira saw a kite and a leaf at a party.",
        ],
    ),
    (
        *("story", {"hero": "fox"}),
        ["The fox " + STORY + " The fox slept.", "Foxy " + STORY + " Oh fox, fox."],
        [STORY, "The fox " + STORY],
    ),
]


@pytest.mark.parametrize(("key", "wanted", "right", "wrong"), JUDGED)
def test_judgement(key: str, wanted: Any, right: list[str], wrong: list[str]) -> None:
    for answer in right:
        assert judged({key: wanted}, answer) == [], answer
    for answer in wrong:
        assert judged({key: wanted}, answer) == [key], answer


def test_every_way_to_judge_is_tried() -> None:
    assert {key for key, *_ in JUDGED} == CHECKS.keys()
    assert judged({"any": ["a"], "none": ["b"], "upper": True}, "a b") == ["none", "upper"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_questions_are_well_formed_and_differ(file: Path) -> None:
    questions = read_questions(file)
    texts = Counter(json.dumps([q["dialog"], q.get("tools")]).lower() for q in questions)
    assert [text for text, count in texts.items() if count > 1] == []
    for question in questions:
        right = question["right"]
        assert all(isinstance(right.get(key, []), list) for key in ("any", "all", "none")), right
        if "tools" in question:
            assert right.keys() & {"call", "no_call"}, question


def test_there_are_enough_questions_of_each_skill() -> None:
    counts = Counter(q["skill"] for q in read_questions(tiny_questions.FOLDER / "questions.jsonl"))
    assert [skill for skill, least in LEAST.items() if counts[skill] < least] == []
    assert counts.keys() == LEAST.keys() == {*tiny_questions.SKILLS}


def test_questions_fit_into_the_context() -> None:
    format = ChatFormat(Tokenizer(str(TINY / "tokenizer.model")))
    for file in FILES:
        for q in read_questions(file):
            length = len(format.encode_dialog_prompt(q["dialog"], q.get("tools")))
            assert length <= (700 if q["skill"] == "stories" else 880), q


@pytest.mark.parametrize(
    "change",
    [
        {"skill": "cooking"},
        {"right": {}},
        {"right": {"sum": 3}},
        {"dialog": [{"role": "assistant", "content": "Hi."}]},
        {"dialog": [{"role": "user", "text": "Hi."}]},
        {"tools": [{"name": "f"}]},
        {"answer": "Hi."},
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    question = {
        "skill": "talk",
        "dialog": [{"role": "user", "content": "Hi"}],
        "right": {"min_words": 1},
    }
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(question))
    assert len(read_questions(file)) == 1
    file.write_text(json.dumps(question) + "\n" + json.dumps(question | change))
    with pytest.raises(ValueError, match=r"questions\.jsonl, line 2: "):
        read_questions(file)


def test_scores_and_failures() -> None:
    message: Any = {"role": "user", "content": "2 + 2?"}
    sums = Question(skill="sums", dialog=[message], right={"number": 4})
    talk = Question(skill="talk", dialog=[message], right={"none": ["5"]})
    scores, failures = tiny_questions.scored([talk, sums, sums], ["4", "4", "It is 5."])
    assert scores == {"sums": (1, 2), "talk": (1, 1)}
    assert failures == ['=== sums\n[user] 2 + 2?\n--> It is 5.\nwanted: {"number": 4}']
    assert [line.split() for line in tiny_questions.table(scores).splitlines()] == [
        ["skill", "right/of", "%"],
        ["sums", "1/2", "50.0"],
        ["talk", "1/1", "100.0"],
        ["all", "2/3", "66.7"],
    ]


def test_the_bundled_model_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Calculates",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string"}},
                "required": ["expression"],
            },
        },
    }
    asked = {"dialog": [{"role": "user", "content": "What is 23 * 17?"}]}
    questions = [
        {"skill": "tools", **asked, "tools": [tool], "right": {"call": SUM}},
        {"skill": "sums", **asked, "right": {"no_call": True, "any": ["never said"]}},
    ]
    file, failures = tmp_path / "questions.jsonl", tmp_path / "failures.txt"
    file.write_text("\n".join(map(json.dumps, questions)))
    main(str(TINY), str(file), str(failures))
    assert "all                1/2  50.0" in capsys.readouterr().out
    assert 'wanted: {"any": ["never said"]}' in failures.read_text()
