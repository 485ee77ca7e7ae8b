"""Sums in digits and words, small stories about numbers, and sums that are too hard."""

import re
from functools import cache

from examples.tiny_data.asking import chosen, sections, sloppy, wording
from examples.tiny_data.fillers import is_woman
from examples.tiny_data.turns import UNKNOWN, Source, Turn, capital, dialog_of
from llama import Message

WORDINGS = "sums.txt"
PROBLEMS = "problems.txt"

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBER_NAMES = " ".join([*ONES, *TENS])
COLORS = "red blue green yellow black white old new big small".split()

SIGNS = {
    "+": ("+", "+", "+", "plus", "plus", "Plus", "add", "and"),
    "-": ("-", "-", "-", "minus", "minus", "Minus", "–", "take away"),
    "*": ("*", "*", "x", "x", "×", "times", "times", "X", "·"),
    "/": ("/", "/", "÷", ":", "divided by", "divided by", "over"),
}
# What is put between a result and another number.
MORE = {"+": ("plus", "+"), "-": ("minus", "-"), "*": ("times", "x", "*")}

TOO_HARD = "I don't know. That is too hard for me."
HARD_ANSWERS = (
    TOO_HARD,
    TOO_HARD,
    TOO_HARD,
    "I don't know. I can only do small sums.",
    "I don't know. These numbers are too big for me.",
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are good at sums.",
    "You help children with their homework.",
    "You are a friendly math teacher.",
    "You are a calculator that talks.",
)
BEFORE = (
    "Can you solve this? |Homework: |Word problem: |Please help me: |Here is a problem: |Solve: |"
    "Hi! |Hello, can you help me? |Please solve this. |Question: |My homework says: |Riddle: |"
    "I have a problem. |Math problem: |Try this one: |Exercise: |Next one: |Listen: |Read this. "
).split("|")
AFTER = (
    " Thanks!| Please help.| I need it for school.| Can you work it out?| Thank you.| What is it?|"
    " Please answer.| I can't solve it.| What's the answer?| Show the sum."
).split("|")
ASIDES = (
    "{o} has a dog.|It is a sunny day.|{n} likes school.|{n} has {x} brothers.|It is {x} o'clock.|"
    "{n} lives in house number {x}.|{n} and {m} are friends.|{o} is {x} years old."
).split("|")


def turn(source: Source) -> Turn:
    """A sum of any kind."""
    odds = source.rng.random()
    if odds < 0.55:
        return bare(source)
    if odds < 0.87:
        return problem(source)
    if odds < 0.93:
        return chain(source)
    return hard(source)


def dialog(source: Source) -> list[Message]:
    """One to five sums, some of which go on with the result before."""
    rng, turns = source.rng, list[Turn]()
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4, 5))):
        result = re.search(r"= (\d+)\.", turns[-1].answer) if turns else None
        if result and 1 < int(result[1]) < 500 and rng.random() < 0.25:
            turns.append(more(source, int(result[1])))
        else:
            turns.append(turn(source))
    return dialog_of(rng.choice(SYSTEMS) if rng.random() < 0.12 else "", turns)


def bare(source: Source, operator: str = "") -> Turn:
    """A sum of two numbers, and no story."""
    rng, table = source.rng, sections(WORDINGS)
    operator = operator or rng.choices("+-*/", (38, 40, 16, 6))[0]
    topic = operator
    if operator in "*/" and rng.random() < 0.15:
        topic = "half" if operator == "/" else rng.choice(("double", "double", "squared"))
    a, b = numbers(source, operator)
    if topic == "half":
        a, b = 2 * rng.randint(1, rng.choice((10, 50))), 2
    elif topic == "double":
        a, b = 2, rng.randint(1, rng.choice((12, 50)))
    elif topic == "squared":
        a = b = rng.randint(1, 12)
    odd = a < b if operator == "-" else operator in "*/" and (a < 2 or b < 2)
    plain = topic in SIGNS and (odd or rng.random() < 0.5)
    question = wording(rng, table, "any" if plain else topic)
    shown = (b, b) if topic == "double" else (a, b)
    share = 1.0 if rng.random() < 0.05 else 0.05
    in_words = tuple(said(source, number, share) for number in shown)
    if "^" in question or "²" in question or "(" in question:
        in_words = tuple(map(str, shown))
    question = question.replace("{e}", _joined(source, in_words, operator))
    return _sum(question.replace("{a}", in_words[0]).replace("{b}", in_words[1]), (a, b), operator)


def chain(source: Source) -> Turn:
    """A sum of three or four small numbers."""
    rng = source.rng
    operators = rng.choice(("++", "++", "++", "+-", "-+", "--", "+++"))
    values = _chain_numbers(source, operators, rng.choice((10, 10, 20, 50)))
    shown = tuple(said(source, value, 0.04) for value in values)
    if set(operators) == {"+"} and rng.random() < 0.4:
        form = rng.choice(
            (
                "Add {}.|Add up {}.|What is the sum of {}?|{} together?|The sum of {}|Sum up {}.|"
                "How much are {}?|What do {} make?|What is the total of {}?|Total of {}?|"
                "Please add {}.|Add these numbers: {}|Can you add {}?|I have {}. How many is that?"
            ).split("|")
        )
        listed = ", ".join(shown[:-1]) + f" and {shown[-1]}"
        question = sloppy(rng, form).replace("{}", listed)
        return _sum(question, values, operators)
    question = wording(rng, sections(WORDINGS), "any").replace(
        "{e}", _joined(source, shown, operators)
    )
    return _sum(question, values, operators)


def more(source: Source, result: int) -> Turn:
    """A sum that goes on with the result before it."""
    rng, table = source.rng, sections(WORDINGS)
    operator = rng.choices("+-*", (5, 4, 1))[0]
    b = rng.randint(1, rng.choice((10, 10, 50)))
    topic = "more"
    if operator == "-":
        b = min(b, result)
    if operator == "*":
        b = 2
        operator = operator if result <= 50 else "+"
        topic = "moredouble" if operator == "*" else "more"
    elif rng.random() < 0.5:
        topic = f"more{operator}"
    question = sloppy(rng, chosen(rng, rng.choice(table[f"{topic} say"])))
    sign = rng.choice(MORE[operator])
    start = question.startswith("{s}") and question[4:5] != "{" and sign.isalpha()
    question = question.replace("{s}", capital(sign) if start else sign).replace("{b}", str(b))
    return _sum(question, (result, b), operator)


def hard(source: Source) -> Turn:
    """A sum that a small model can't do."""
    rng = source.rng
    if rng.random() < 0.4:
        question = wording(rng, sections(WORDINGS), "hard")
        parts = {
            "h": str(rng.randint(50, rng.choice((999, 99999)))),
            "i": str(rng.randint(100, 999)),
            "p": str(rng.randint(3, 99)),
            "d": str(rng.randint(3, 19)),
            "f": f"{rng.randint(1, 99)}.{rng.randint(1, 99)} {rng.choice('+-*/')} "
            f"{rng.randint(1, 99)}.{rng.randint(1, 99)}",
        }
        return _too_hard(source, _filled(question, parts))
    operator = rng.choice("++--**/")
    large = rng.choice((9999, 9999, 99999, 999999))
    if operator in "+-":
        a, b = rng.randint(1000, large), rng.randint(rng.choice((2, 100, 1000)), large)
        a, b = (max(a, b), min(a, b)) if operator == "-" else (a, b)
    elif operator == "*":
        low, high = rng.choice(((13, 99), (100, 999), (13, 999)))
        a, b = rng.randint(low, high), rng.randint(low, high)
    else:
        a, b = rng.randint(200, large), rng.randint(13, 99)
    question = wording(rng, sections(WORDINGS), rng.choice(("any", operator)))
    shown = (str(a), str(b))
    question = question.replace("{e}", _joined(source, shown, operator))
    return _too_hard(source, question.replace("{a}", shown[0]).replace("{b}", shown[1]))


def problem(source: Source) -> Turn:
    """A small story with numbers, a question, and the answer in a sentence."""
    rng = source.rng
    operators, most, question, sentence, extra = rng.choice(_problems())
    if len(operators) > 1:
        values = _chain_numbers(source, operators, most, low=2)
    elif operators in "*/":
        a, b = rng.randint(2, most), rng.randint(2, most)
        values = (a, b) if operators == "*" else (a * b, b)
    elif operators == "+":
        values = (rng.randint(2, _size(source, most)), rng.randint(2, _size(source, most)))
    else:
        a = rng.randint(5, max(9, _size(source, most)))
        values = (a, rng.randint(2, a - 2))
    if number := re.search(r"\{b(\d)\}", question):
        values = (values[0], int(number[1]))
        question = question.replace(number[0], str(values[0]))
    parts = _parts(source, extra)
    if rng.random() < 0.08 and "years old" not in question:
        question = rng.choice(ASIDES) + " " + question
    elif rng.random() < 0.08:
        question = _turned(question)
    question = _dressed(source, question)
    for place, value in zip("abc", values, strict=False):
        parts[place] = said(source, value, 0.1)
    asked = _filled(question, parts)
    for place, value in zip("abc", values, strict=False):
        parts[place] = str(value)
    result = _reckoned(values, operators)
    told = capital(_filled(sentence, {**parts, "r": str(result)}))
    sum_ = _sum(asked, values, operators)
    return Turn(asked, f"{sum_.answer} {told}", f"{result}.", sum_.few, told)


def said(source: Source, number: int, share: float = 0.07) -> str:
    """A number, at times in words."""
    if not 0 < number < 100 or source.rng.random() >= share:
        return str(number)
    if number < 20:
        return ONES[number]
    return TENS[number // 10 - 2] + (f"-{ONES[number % 10]}" if number % 10 else "")


def numbers(source: Source, operator: str) -> tuple[int, int]:
    """Two numbers as people reckon with."""
    rng = source.rng
    if operator == "*":
        if rng.random() < 0.1:
            return rng.choice((20, 30, 40, 50, 13, 14, 15, 25)), rng.randint(2, 5)
        return rng.randint(0, 12), rng.randint(0, 12)
    if operator == "/":
        b = rng.randint(1, 12)
        return b * rng.randint(1, 12), b
    first, second = rng.choices(
        (((0, 10), (0, 10)), ((0, 10), (10, 99)), ((10, 99), (10, 99)), ((100, 999), (2, 999))),
        (30, 15, 35, 20),
    )[0]
    a, b = rng.sample((rng.randint(*first), rng.randint(*second)), 2)
    if operator == "-" and a < b and rng.random() < 0.9:
        return b, a
    if operator == "+" and a + b > 999 and rng.random() < 0.8:
        return a - 500 if a > 600 else a, b - 500 if b > 600 else b
    return a, b


def _size(source: Source, most: int) -> int:
    """The most that a number in a story is: often small."""
    return source.rng.choice((min(most, 12), min(most, 30), most, most))


def _chain_numbers(source: Source, operators: str, most: int, low: int = 1) -> tuple[int, ...]:
    """Numbers for operators, so that no result on the way is below 2."""
    rng = source.rng
    while True:
        values = tuple(rng.randint(low, most) for _ in range(len(operators) + 1))
        results = [_reckoned(values[: i + 1], operators[:i]) for i in range(len(values))]
        if all(result > 1 for result in results[1:]):
            return values


def _reckoned(values: tuple[int, ...], operators: str) -> int:
    result = values[0]
    for operator, value in zip(operators, values[1:], strict=True):
        if operator == "+":
            result += value
        elif operator == "-":
            result -= value
        elif operator == "*":
            result *= value
        else:
            result //= value
    return result


def _joined(source: Source, shown: tuple[str, ...], operators: str) -> str:
    """Numbers with the operators between them, as signs or in words."""
    rng, text = source.rng, shown[0]
    gap = rng.choice((" ", " ", ""))
    words = rng.random() < 0.4 or not all(number.isdigit() for number in shown)
    for operator, number in zip(operators, shown[1:], strict=True):
        signs = SIGNS[operator]
        if len(operators) > 1:
            signs = tuple(sign for sign in signs if sign not in ("and", "add", "Plus", "Minus"))
        sign = rng.choice(
            [sign for sign in signs if sign.isascii() and sign[-1].isalpha() == words] or signs
        )
        if sign == "X":
            gap = " "
        text += f" {sign} {number}" if words else f"{gap}{sign}{gap}{number}"
    return text


def _sum(question: str, values: tuple[int, ...], operators: str) -> Turn:
    result = _reckoned(values, operators)
    told = str(values[0])
    for operator, value in zip(operators, values[1:], strict=True):
        told += f" {operator} {value}"
    few = f"{result}."
    return Turn(_capital(question), f"{told} = {few}", few, few, f"The answer is {few}")


def _capital(question: str) -> str:
    """A number in words begins a message with a capital letter if the rest has marks."""
    return capital(question) if question.endswith((".", "?")) else question


def _too_hard(source: Source, question: str) -> Turn:
    answer = source.rng.choice(HARD_ANSWERS)
    return Turn(question, answer, "Unknown.", UNKNOWN, answer)


def _filled(text: str, parts: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], text)


def _turned(question: str) -> str:
    """The last sentence first, where it says enough by itself."""
    told, mark, asked = question.rpartition(". ")
    asks_first = asked.startswith(("How many {", "How old is {", "How many more {"))
    if mark and asks_first and "{he}" not in asked and "{n}" in asked and " now" not in asked:
        return f"{asked} {told}."
    return question


def _dressed(source: Source, question: str) -> str:
    rng = source.rng
    odds = rng.random()
    if odds < 0.12:
        question = rng.choice(BEFORE) + question
    elif odds < 0.2:
        question += rng.choice(AFTER)
    return sloppy(rng, question)


@cache
def _problems() -> list[tuple[str, int, str, str, str]]:
    """Operators, the largest number, question, sentence, and what else its line says."""
    found = []
    for line in sections(PROBLEMS)["problems"]:
        kind, question, sentence, *extra = (part.strip() for part in line.split("|"))
        operators, most = kind.split()
        found.append((operators, int(most), question, sentence, extra[0] if extra else ""))
    return found


@cache
def _kinds() -> dict[str, tuple[str, ...]]:
    """Things and people, by kind."""
    table = sections(PROBLEMS)
    return {
        kind: tuple(item.strip() for item in lines[0].split(","))
        for kind, lines in table.items()
        if kind != "problems"
    }


def _parts(source: Source, extra: str) -> dict[str, str]:
    """Names, things, places and days, each another one."""
    rng, kinds = source.rng, _kinds()
    parts = dict[str, str]()
    names = NUMBER_NAMES  # nobody is called Two
    for place in ("n", "m", "o"):
        parts[place] = source.fresh("person", names)
        names += f" {parts[place]}"
    for place in ("town", "town2", "town3"):
        parts[place] = source.fresh("town", names)
        names += f" {parts[place]}"
    woman = is_woman(parts["n"])
    girl = rng.random() < 0.5 if woman is None else woman
    he, his, him = ("she", "her", "her") if girl else ("he", "his", "him")
    parts |= {"he": he, "He": capital(he), "his": his, "His": capital(his), "him": him}
    parts |= dict(zip(("k", "k2"), rng.sample(kinds["k"], 2), strict=True))
    if rng.random() < 0.2 and extra != "plain":
        parts["k"] = f"{rng.choice(COLORS)} {parts['k']}"
    parts |= dict(zip(("thing", "thing2", "thing3"), rng.sample(kinds["thing"], 3), strict=True))
    parts |= dict(zip(("place", "place2"), rng.sample(kinds["place"], 2), strict=True))
    days = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
    parts |= dict(zip(("day", "day2", "day3"), rng.sample(days, 3), strict=True))
    for kind in ("animal", "baked", "flowers", "people", "room"):
        parts[kind] = rng.choice(kinds[kind])
    if extra == "birds":
        parts["animal"] = rng.choice(kinds["birds"])
    if extra == "nuts":
        parts["k"] = rng.choice(("nuts", "seeds", "apples", "carrots", "leaves", "berries"))
    parts["x"] = str(rng.randint(2, 12))
    return parts
