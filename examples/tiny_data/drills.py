"""Texts that practise one thing many times, before any wording: sums, letters, looking up, copying.

All of a text is learned, so that a sum takes a dozen tokens where a dialog about one takes fifty.
"""

import json

from examples.tiny_data import letters as words
from examples.tiny_data.prose import some_facts
from examples.tiny_data.sums import numbers
from examples.tiny_data.turns import Source

VALUES = ("town", "person", "number", "color", "food", "animal", "job", "time", "a thing", "price")


def sums(source: Source) -> str:
    """Twenty to forty sums with their results."""
    rng, lines = source.rng, []
    for _ in range(rng.randint(20, 40)):
        operator = rng.choices("+-*/", (40, 42, 13, 5))[0]
        a, b = numbers(source, operator)
        result = {"+": a + b, "-": a - b, "*": a * b}.get(operator)
        lines.append(f"{a} {operator} {b} = {a // b if result is None else result}.")
    return rng.choice((" ", "\n", "\n")).join(lines)


def letters(source: Source) -> str:
    """Five to twelve words, spelled, with a letter or all letters counted, or backwards."""
    rng, lines = source.rng, []
    for _ in range(rng.randint(5, 12)):
        kind, letter = rng.random(), ""
        if kind < 0.5:
            answer = words.spelled(source).answer
        elif kind < 0.85:
            answer = words.counted(source).answer
            letter = answer.split("\n")[1].split()[2]
        else:
            answer = words.length(source).answer
        word = "".join(each for each in answer.split("\n")[0] if each.isalpha()).lower()
        lines.append(f"{letter} {word}\n{answer}".strip())
    return "\n".join(lines)


def looked_up(source: Source) -> str:
    """Names with values, or facts, said three or four times in the very same words."""
    rng = source.rng
    if rng.random() < 0.6:
        pairs = [fact.clause for fact in some_facts(source, rng.choice((3, 5, 8)))]
        joint = rng.choice((" ", "\n"))
    else:
        kind, form = rng.choice(VALUES), rng.choice(("{}: {}", "{} - {}", "{} = {}", "{} | {}"))
        text, found = "", list[tuple[str, str]]()
        for _ in range(rng.randint(3, 9)):
            pair = source.fresh("person", text), source.fresh(kind, text)
            text += " ".join(pair)
            found.append(pair)
        pairs = [form.format(*pair) for pair in found]
        joint = rng.choice(("\n", "; "))
    rounds = [joint.join(rng.sample(pairs, len(pairs))) for _ in range(rng.choice((3, 4)))]
    return rng.choice(("\n\n", "\n")).join(rounds)


def copied(source: Source) -> str:
    """Phrases of names and words that nobody has heard, each said again at once, also as JSON."""
    rng, lines = source.rng, []
    for _ in range(rng.randint(3, 7)):
        kinds = rng.choices((*VALUES, "word", "word", "word"), k=rng.randint(1, 5))
        parts = [
            rng.choice(source.words) if kind == "word" else source.pick(kind) for kind in kinds
        ]
        phrase = " ".join(parts)
        if rng.random() < 0.4:
            name = f"{rng.choice(source.words)}_{rng.choice(source.words)}"
            keys = rng.sample(source.words, len(parts))
            said = ", ".join(f"{key} {part}" for key, part in zip(keys, parts, strict=True))
            call = {"name": name, "parameters": dict(zip(keys, parts, strict=True))}
            lines.append(f"{name.replace('_', ' ')}: {said}\n{json.dumps(call)}")
        else:
            mark = rng.choice(('"', "", "", "'", "**"))
            lines.append(f"{phrase}\n{mark}{phrase}{mark}")
    return "\n".join(lines)
