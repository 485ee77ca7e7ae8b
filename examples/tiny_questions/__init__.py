"""Questions written by hand, to measure the bundled model on what no generator of its data made.

`*.jsonl` has one question a line: {"skill": ..., "dialog": [messages], "tools": [definitions, where
there are any], "right": {...}}. The model writes the message that comes next, at temperature 0.
It is right if every key of `right` holds of it:

any, all, none          of these phrases, in whole words and any case, so many occur
number, count           the last number
unknown                 it says that it does not know, or that the text does not say
spelled                 the letters of this word and no others stand one by one in a row
call                    {"name", "arguments"}: it is this call, or one of a list of them: texts in
                        any case, sums by their value
no_call                 it is none
upper, lower            all its letters are of this case
starts, ends, matches   its beginning, its end, a regular expression
max_words, min_words, max_sentences
story                   {"hero", "things"}: at least 40 words about the hero, with the things
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from examples.tiny_questions.judging import CHECKS, judged
from llama import Llama, Message
from llama.dialog import Tool, checked_dialog, checked_tools, write_message

FOLDER = Path(__file__).parent
SKILLS = tuple(
    "facts missing sums one_digit spelling counting style tools remembered stories talk persona "
    "limits".split()
)


class Question(TypedDict):
    """A dialog without its last answer, and what that has to be."""

    skill: str
    dialog: list[Message]
    tools: NotRequired[list[Tool]]
    right: dict[str, Any]


def read_questions(file: Path) -> list[Question]:
    """The questions of a file; ValueError names the first line that is malformed."""
    questions = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            question: Question = json.loads(line)
            check(question)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
        questions.append(question)
    return questions


def check(question: Question) -> None:
    """ValueError for a question that has not the form that the module's description gives."""
    if question.keys() - {"tools"} != {"skill", "dialog", "right"}:
        raise ValueError(f"the keys are {[*question]}")
    if question["skill"] not in SKILLS:
        raise ValueError(f"{question['skill']!r} is no skill")
    checked_tools(question.get("tools"))
    if checked_dialog(question["dialog"])[-1]["role"] not in ("user", "ipython", "tool"):
        raise ValueError("the last message is the assistant's or the system's")
    if not question["right"] or not question["right"].keys() <= CHECKS.keys():
        raise ValueError(f"the answer is judged by {[*question['right']]}")


def ask(llama: Llama, questions: Sequence[Question]) -> list[str]:
    """The model's answer to each question; a call is written as Llama writes it."""
    groups: dict[tuple[str, int], list[int]] = {}
    for index, question in enumerate(questions):
        length = 256 if question["skill"] == "stories" else 128
        groups.setdefault((json.dumps(question.get("tools")), length), []).append(index)
    answers = [""] * len(questions)
    for (tools, length), indices in groups.items():
        predictions = llama.chat_completion(
            [questions[index]["dialog"] for index in indices],
            temperature=0,
            max_gen_len=length,
            tools=json.loads(tools),
        )
        for index, prediction in zip(indices, predictions, strict=True):
            answers[index] = written(prediction["generation"])
    return answers


def written(message: Message) -> str:
    """A message's text, and its calls as Llama writes them."""
    content, calls, *_ = write_message(message)
    return f"{content}\n{calls}".strip()


def failure(question: Question, answer: str, wrong: Sequence[str]) -> str:
    """What was asked, answered and wanted, to be read."""
    lines = [f"=== {question['skill']}"]
    lines += [f"[tool] {json.dumps(tool['function'])}" for tool in question.get("tools", ())]
    for message in question["dialog"]:
        lines.append(f"[{message['role']}] {written(message)}")
    lines.append(f"--> {answer}")
    wanted = {key: question["right"][key] for key in wrong}
    return "\n".join([*lines, f"wanted: {json.dumps(wanted, ensure_ascii=False)}"])


def scored(
    questions: Sequence[Question], answers: Sequence[str]
) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Right answers and questions of each skill, and the failures as texts."""
    scores: dict[str, tuple[int, int]] = {}
    failures = []
    for question, answer in zip(questions, answers, strict=True):
        wrong = judged(question["right"], answer)
        right, asked = scores.get(question["skill"], (0, 0))
        scores[question["skill"]] = (right + (not wrong), asked + 1)
        if wrong:
            failures.append(failure(question, answer, wrong))
    return {skill: scores[skill] for skill in SKILLS if skill in scores}, failures


def table(scores: dict[str, tuple[int, int]]) -> str:
    """The scores of the skills and of all, a line each."""
    total = tuple(map(sum, zip(*scores.values(), strict=True)))
    rows = [*scores.items(), ("all", total)]
    lines = [f"{'skill':<12}{'right/of':>10}{'%':>6}"]
    for skill, (right, asked) in rows:
        lines.append(f"{skill:<12}{f'{right}/{asked}':>10}{100 * right / asked:>6.1f}")
    return "\n".join(lines)


def transcripts(llama: Llama) -> str:
    """The dialogs of `dialogs.json`, each message of which the model answers, in Markdown."""
    parts = []
    for number, given in enumerate(json.loads((FOLDER / "dialogs.json").read_text("utf-8")), 1):
        tools = given.get("tools")
        names = ", ".join(tool["function"]["name"] for tool in tools or ())
        lines = [f"**{number}**" + (f" (offered: {names})" if names else "")]
        dialog: list[Message] = []
        for message in given["messages"]:
            dialog.append(message)
            lines.append(_quoted(message))
            if message["role"] != "system":
                (result,) = llama.chat_completion(
                    [dialog], temperature=0, max_gen_len=256, tools=tools
                )
                dialog.append(result["generation"])
                lines.append(_quoted(result["generation"]))
        parts.append("\n>\n".join(lines))
    return "\n\n".join(parts)


def _quoted(message: Message) -> str:
    return f"> *{message['role']}*: {written(message)}".replace("\n", "<br>")
