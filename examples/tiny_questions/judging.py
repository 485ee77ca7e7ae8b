"""Is an answer right? One function for each key that a question's `right` may have."""

import ast
import json
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

_NOT_SAID = (
    r"(do(es)?|did)(n't| not) (\w+ )?"
    r"(know|say|mention|tell|state|give|specify|include|contain|list|provide)",
    r"((is|are|was|were|has|have|been)(n't| not)( been)?|not|never|nowhere) (\w+ )?"
    r"(given|mentioned|said|says|stated|told|tells?|specified|provided|included|listed|clear|sure)",
    r"(is|are|was|were)(n't| not) (known|something I)|not (known|enough)",
    r"((is|are|was|were)(n't| not)|not|(is|are) no \w+) (in|on|part of) "
    r"(the|this|that|your|my|these) "
    r"(text|list|table|note|letter|message|mail|e-mail|story|page|menu|report|sources?)",
    r"no (information|idea|mention|clue|way to)",
    r"nothing (is said|(in|about|on) (the|this|that|it|him|her|them|[A-Z]))",
    r"(can't|cannot|can not|couldn't|could not|unable to|not able to) "
    r"(tell|say|know|answer|find|see|help|do|look|give|be sure)",
    r"I (can't|cannot|can not|have no|haven't|have not|don't have|do not have|only know)",
    r"beyond (me|what I)|too (hard|big|much) for me|more than I|(knows?|says?) nothing",
    r"I('m| am) (not able|too small|too little|unable|only a small|just a small)",
    r"unknown|unclear|unsure|unspecified",
)
UNKNOWN = re.compile(rf"\b({'|'.join(_NOT_SAID)})\b", re.IGNORECASE)
NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen twenty".split()
    )
} | {"once": 1, "twice": 2, "thrice": 3}
NUMBER = re.compile(r"(?<![\w)\].])-?\d[\d,]*(?:\.\d+)?|\d[\d,]*(?:\.\d+)?")
CALL = re.compile(r'\{\s*"name"')
NAME = re.compile(r"(?<=[\w,;:] )[A-Z][a-z]+")  # a capitalised word inside a sentence
NO_NAMES = {
    "I",
    "Mom",
    "Mommy",
    "Mum",
    "Mummy",
    "Mama",
    "Dad",
    "Daddy",
    "Papa",
    "Mr",
    "Mrs",
    "Miss",
}
OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
}


def judged(right: dict[str, Any], answer: str) -> list[str]:
    """The keys of `right` that do not hold of an answer, none if it is right.

    A call is text too: Llama's JSON.
    """
    text = answer.strip().replace("’", "'").replace("‘", "'")
    return [key for key, wanted in right.items() if not CHECKS[key](text, wanted)]


def has(text: str, phrase: str) -> bool:
    """Whether a phrase occurs in a text, in whole words and any case."""
    return bool(re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE))


def last_number(text: str) -> float | None:
    """The last number in digits; without digits, the last one in words."""
    if numbers := NUMBER.findall(text):
        return float(numbers[-1].replace(",", ""))
    words = [word for word in re.findall("[a-z]+", text.lower()) if word in NUMBER_WORDS]
    return float(NUMBER_WORDS[words[-1]]) if words else None


def is_spelled(text: str, word: str) -> bool:
    """Whether the letters of a word, and no more, stand in a row, divided all in the same way."""
    for divider in ("-", ",", r"\.", r"\s"):
        row = rf"(?<!\w)[^\W\d_](?:\s*{divider}\s*[^\W\d_](?!\w))+"
        for letters in re.findall(row, text):
            if re.sub(r"[\W\d_]", "", letters).casefold() == word.casefold():
                return True
    return False


def called(text: str) -> tuple[str, dict[str, Any]] | None:
    """The name and arguments of the one call that a text is, if it is one."""
    try:
        call = json.loads(text)
    except ValueError:
        return None
    if not isinstance(call, dict) or call.keys() != {"name", "parameters"}:
        return None
    return (call["name"], call["parameters"]) if isinstance(call["parameters"], dict) else None


def is_call(text: str, wanted: dict[str, Any] | Sequence[dict[str, Any]]) -> bool:
    """Whether a text is the call that is wanted, or one of several."""
    call = called(text)
    if call is None:
        return False
    calls = [wanted] if isinstance(wanted, dict) else wanted
    return any(
        call[0] == one["name"]
        and call[1].keys() == one["arguments"].keys()
        and all(same(call[1][key], value) for key, value in one["arguments"].items())
        for one in calls
    )


def same(given: Any, wanted: Any) -> bool:
    """Whether two arguments are as good as equal: in another case, or a sum of the same value."""
    if isinstance(given, bool) or isinstance(wanted, bool):
        return str(given).lower() == str(wanted).lower()
    if isinstance(given, list) and isinstance(wanted, list):
        return len(given) == len(wanted) and all(map(same, given, wanted))
    texts = [plain(str(value)) for value in (given, wanted)]
    values = [value_of(text) for text in texts]
    if None not in values:
        return abs(values[0] - values[1]) < 1e-6  # type: ignore[operator]
    return texts[0] == texts[1]


def plain(text: str) -> str:
    """A text without its case, an article in front and what ends or encloses it."""
    words = " ".join(text.casefold().split()).strip(" .!?\"'")
    return re.sub(r"^(the|an?) ", "", words)


def value_of(expression: str) -> float | None:
    """The value of an arithmetic expression or a number; None for any other text."""
    for sign, plain in (("×", "*"), ("÷", "/"), ("−", "-"), (",", "")):
        expression = expression.replace(sign, plain)
    expression = re.sub(r"(?<=\d)\s*x\s*(?=\d)", "*", expression)

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.BinOp():
                return OPERATORS[type(node.op)](value(node.left), value(node.right))
            case ast.UnaryOp():
                return OPERATORS[type(node.op)](value(node.operand))
        raise ValueError

    try:
        return value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError, OverflowError):
        return None


def words(text: str) -> list[str]:
    """The words of a text: what stands between blanks and has a letter or a digit."""
    return [word for word in text.split() if re.search(r"\w", word)]


def sentences(text: str) -> int:
    """How many sentences a text has; the last one may have no end."""
    return len([part for part in re.split(r"(?<=[.!?])[\"')]*\s+", text) if words(part)])


def is_story(text: str, wanted: dict[str, Any]) -> bool:
    """Whether a text is about a hero, has the wanted things in it and is not too short.

    A hero with a name is named at least as often as everybody else.
    """
    hero = wanted["hero"]
    times = occurrences(text, hero)
    if len(words(text)) < 40 or times < 2:
        return False
    if not all(has_thing(text, thing) for thing in wanted.get("things", ())):
        return False
    names = Counter(name for name in NAME.findall(text) if name not in NO_NAMES)
    others = [name for name in names if name.lower() not in hero.lower()]
    return hero.islower() or all(occurrences(text, name) <= times for name in others)


def occurrences(text: str, name: str) -> int:
    """How often a name stands in a text."""
    return len(re.findall(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE))


def has_thing(text: str, thing: str) -> bool:
    """Whether a thing or several of its kind occur in a text."""
    plurals = [thing, thing + "s", thing + "es"]
    if thing.endswith("y"):
        plurals.append(thing[:-1] + "ies")
    if thing.endswith(("f", "fe")):
        plurals.append(thing.rstrip("e")[:-1] + "ves")
    return any(has(text, form) for form in plurals)


def is_in_case(text: str, change: Callable[[str], str], wanted: bool) -> bool:
    """Whether a text has letters, and a change of case leaves them as they are."""
    return (any(c.isalpha() for c in text) and text == change(text)) == wanted


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "any": lambda text, wanted: any(has(text, phrase) for phrase in wanted),
    "all": lambda text, wanted: all(has(text, phrase) for phrase in wanted),
    "none": lambda text, wanted: not any(has(text, phrase) for phrase in wanted),
    "number": lambda text, wanted: last_number(text) == wanted,
    "count": lambda text, wanted: last_number(text) == wanted,
    "unknown": lambda text, wanted: bool(UNKNOWN.search(text)) == wanted,
    "spelled": is_spelled,
    "call": is_call,
    "no_call": lambda text, wanted: bool(text) and (not CALL.search(text)) == wanted,
    "upper": lambda text, wanted: is_in_case(text, str.upper, wanted),
    "lower": lambda text, wanted: is_in_case(text, str.lower, wanted),
    "starts": lambda text, wanted: text.casefold().startswith(wanted.casefold()),
    "ends": lambda text, wanted: text.casefold().endswith(wanted.casefold()),
    "max_words": lambda text, wanted: 0 < len(words(text)) <= wanted,
    "min_words": lambda text, wanted: len(words(text)) >= wanted,
    "max_sentences": lambda text, wanted: 0 < sentences(text) <= wanted,
    "matches": lambda text, wanted: bool(re.search(wanted, text)),
    "story": is_story,
}
