"""What is measured: dialogs of what was kept out of training, and the share of right answers."""

import json
from collections.abc import Callable, Mapping, Sequence

from examples.tiny_skills.dialogs import Example, Skills, example_of
from llama import Llama
from llama.errors import InputError

SCORES: dict[str, Callable[[Skills], Example]] = {
    "facts": lambda skills: skills.asked(skills.rng.randint(1, 3), "known"),
    "facts that are missing": lambda skills: skills.asked(skills.rng.randint(1, 3), "unknown"),
    "all facts about one": lambda skills: skills.asked(skills.rng.randint(1, 3), "about"),
    "addition": lambda skills: example_of("", [skills.sum("+")]),
    "subtraction": lambda skills: example_of("", [skills.sum("-")]),
    "subtraction below zero": lambda skills: example_of("", [skills.sum("-", negative=True)]),
    "multiplication": lambda skills: example_of(
        "", [skills.rng.choice((skills.sum, skills.problem))("*")]
    ),
    "word problems": lambda skills: example_of("", [skills.problem(skills.rng.choice("+-"))]),
    "style": lambda skills: skills.styled(),
    "names": lambda skills: skills.remembered(unknown=False),
    "names that were not told": lambda skills: skills.remembered(unknown=True),
    "tool calls": lambda skills: skills.tool_call(),
    "tool results": lambda skills: skills.tool_result(),
    "tools not needed": lambda skills: skills.tool_not_needed(),
}


def exam(skills: Skills, number: int = 200) -> dict[str, list[Example]]:
    """For each of `SCORES` so many examples, all different, of `skills`, which is held out.

    Of words, each is spelled once, however many there are. Raises ValueError where there are not
    enough different examples.
    """
    examples: dict[str, list[Example]] = {}
    for name, make in SCORES.items():
        found: dict[str, Example] = {}
        for _ in range(20 * number):
            example = make(skills)
            found.setdefault(json.dumps(example.dialog), example)
            if len(found) == number:
                break
        else:
            raise InputError(f"{name}: there are only {len(found)} examples, not {number}")
        examples[name] = list(found.values())
    examples["spelling"] = [example_of("", [skills.spelled(word)]) for word in skills.words]
    return examples


def score(llama: Llama, examples: Mapping[str, Sequence[Example]]) -> dict[str, float]:
    """The share of each skill's examples that `llama` answers right, at temperature 0."""
    shares = {}
    for name, those in examples.items():
        dialogs = [example.dialog[:-1] for example in those]
        results = llama.chat_completion(dialogs, temperature=0, max_gen_len=96)
        answers = [result["generation"]["content"] for result in results]
        right = [example.right(answer) for example, answer in zip(those, answers, strict=True)]
        shares[name] = sum(right) / len(right)
    return shares
