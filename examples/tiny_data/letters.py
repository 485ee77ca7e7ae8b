"""Words letter by letter: spelled, their letters counted, their first and their last one."""

import random
from collections import Counter
from collections.abc import Callable
from string import ascii_lowercase

from examples.tiny_data.asking import chosen, sections, sloppy, wording
from examples.tiny_data.turns import Source, Turn, capital, dialog_of
from llama import Message

WORDINGS = "letters.txt"
QUOTES = ('"{}"', '"{}"', "'{}'", "“{}”", "‘{}’")
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You help children to learn spelling.",
    "You are good at spelling.",
    "You spell words and count their letters.",
    "You are a patient teacher of English.",
)
LONGEST = 16


def turn(source: Source) -> Turn:
    """A question about the letters of a word."""
    kinds: tuple[Callable[[Source], Turn], ...]
    kinds = (spelled, counted, length, first_or_last, contains, backwards)
    return source.rng.choices(kinds, (46, 34, 9, 5, 4, 3))[0](source)


def dialog(source: Source) -> list[Message]:
    """One to five questions, some of which say only what is new."""
    rng, turns = source.rng, list[Turn]()
    count = rng.choice((1, 1, 2, 3, 4, 5))
    while len(turns) < count:
        if rng.random() < 0.35:
            turns += follow_ups(source)
        else:
            turns.append(turn(source))
    return dialog_of(rng.choice(SYSTEMS) if rng.random() < 0.12 else "", turns[:5])


def spelled(source: Source, word: str = "") -> Turn:
    """A request to spell a word, and its letters."""
    rng = source.rng
    topic = "spell"
    if not word and rng.random() < 0.12:
        word, topic = _name(source), rng.choice(("spell", "spellname", "spellname"))
    word = word or _word(source)
    question = wording(rng, sections(WORDINGS), topic)
    return _spelled(_filled(source, question, word), word)


def counted(source: Source, word: str = "", letter: str = "") -> Turn:
    """A question for how often a letter occurs in a word."""
    if not word:
        word, letter = _counting(source)
    letter = letter or _letter(source.rng, word)
    question = wording(source.rng, sections(WORDINGS), "count")
    return _counted(_filled(source, question, word, letter), word, letter)


def length(source: Source, word: str = "") -> Turn:
    """A question for the number of letters of a word."""
    word = word or _word(source)
    question = wording(source.rng, sections(WORDINGS), "length")
    return _length(_filled(source, question, word), word)


def first_or_last(source: Source, word: str = "") -> Turn:
    """A question for the first or the last letter of a word."""
    rng, word = source.rng, word or _word(source)
    end, letter = rng.choice((("first", word[0]), ("last", word[-1])))
    topic = rng.choice(("first", "first", "begin"))
    question = wording(rng, sections(WORDINGS), topic)
    begin = rng.choice(("begin", "start")) if end == "first" else "end"
    question = question.replace("{end}", end).replace("{begin}", begin)
    question = capital(question) if question.startswith(end) and rng.random() < 0.5 else question
    told = f"The {end} letter is {letter.upper()}."
    answer = f"{letters(word)}\n{told}"
    few = f"{letter.upper()}."
    return Turn(_filled(source, question, word), answer, few, few, told)


def contains(source: Source, word: str = "") -> Turn:
    """A question whether a letter occurs in a word."""
    rng, word = source.rng, word or _word(source)
    letter = rng.choice(word) if rng.random() < 0.5 else rng.choice(ascii_lowercase)
    letter = letter.lower()
    question = _filled(source, wording(rng, sections(WORDINGS), "contain"), word, letter)
    if letter in word.lower():
        word_, told = "Yes.", f"Yes, the letter {letter} is in it."
    else:
        word_, told = "No.", f"No, the letter {letter} is not in it."
    return Turn(question, f"{letters(word)}\n{told}", word_, word_, told)


def backwards(source: Source, word: str = "") -> Turn:
    """A request to spell a word backwards."""
    word = word or _word(source)
    question = wording(source.rng, sections(WORDINGS), "back")
    told = letters(word[::-1])
    sentence = f"Backwards it is spelled {told}."
    return Turn(_filled(source, question, word), told, told, told, sentence)


def follow_ups(source: Source) -> list[Turn]:
    """A question and one or two more that can't be understood without it."""
    rng, table = source.rng, sections(WORDINGS)
    kind = rng.choice(("spell", "spell", "count", "letter", "length", "back"))
    topic = f"more{kind} say"
    asked = [sloppy(rng, chosen(rng, form)) for form in rng.sample(table[topic], 2)]
    if kind == "spell":
        turns = [spelled(source, _word(source))]
        for form in asked[: rng.randint(1, 2)]:
            word = _word(source)
            turns.append(_spelled(_filled(source, form, word), word))
    elif kind == "count":
        word, letter = _counting(source)
        turns = [counted(source, word, letter)]
        word = _counting(source)[0]
        turns.append(_counted(_filled(source, asked[0], word, letter), word, letter))
    elif kind == "letter":
        word, letter = _counting(source)
        first = counted(source, word, letter) if rng.random() < 0.6 else spelled(source, word)
        other = _letter(rng, word, but=letter)
        turns = [first, _counted(_filled(source, asked[0], word, other), word, other)]
    elif kind == "length":
        word = _word(source)
        turns = [spelled(source, word), _length(asked[0], word)]
    else:
        word = _word(source)
        told = letters(word[::-1])
        last = Turn(asked[0], told, told, told, f"Backwards it is spelled {told}.")
        turns = [spelled(source, word), last]
    return turns


def letters(word: str) -> str:
    """Capital letters with dashes between them."""
    return "-".join(word.upper())


def _spelled(question: str, word: str) -> Turn:
    told = letters(word)
    return Turn(question, told, told, told, f"{capital(word)} is spelled {told}.")


def _counted(question: str, word: str, letter: str) -> Turn:
    shown, found = list[str](), 0
    for each in word.upper():
        found += each == letter.upper()
        shown.append(f"{each}({found})" if each == letter.upper() else each)
    times = f"{found} time{'s' * (found != 1)}"
    told = f"The letter {letter} is found {times}."
    return Turn(question, "-".join(shown) + f"\n{told}", f"{found}.", capital(f"{times}."), told)


def _length(question: str, word: str) -> Turn:
    shown = "-".join(f"{letter}({i})" for i, letter in enumerate(word.upper(), 1))
    number = f"{len(word)} letter{'s' * (len(word) != 1)}"
    told = f"There {'is' if len(word) == 1 else 'are'} {number}."
    return Turn(question, f"{shown}\n{told}", f"{len(word)}.", f"{number}.", told)


def _word(source: Source) -> str:
    """A word of the source, a name, or one that does not exist."""
    rng = source.rng
    while True:
        odds = rng.random()
        if odds < 0.8:
            word = rng.choice(source.words)
        elif odds < 0.9:
            word = _name(source)
        else:
            word = _made_up(source)
        if word.isascii() and word.isalpha() and 1 < len(word) <= LONGEST:
            return word


def _name(source: Source) -> str:
    while True:
        kind = source.rng.choice(("person", "person", "town", "pet"))
        name = source.pick(kind).rpartition(" ")[2]
        if name.isascii() and name.isalpha() and 1 < len(name) <= LONGEST:
            return name


def _made_up(source: Source) -> str:
    """The start of a word and the end of another."""
    rng = source.rng
    first, second = rng.choice(source.words), rng.choice(source.words)
    return (first[: rng.randint(2, 5)] + second[-rng.randint(2, 5) :]).lower()


def _counting(source: Source) -> tuple[str, str]:
    """A word and a letter: in half of all, it occurs two, three or four times."""
    rng = source.rng
    wanted = rng.choices((0, 1, 2, 3, 4), (10, 40, 28, 15, 7))[0]
    for attempt in range(60):
        word = _word(source)
        if wanted == 0:
            return word, _absent(rng, word)
        if wanted > 2 and attempt > 20:  # two words in one have more
            word = (word + rng.choice(source.words))[:LONGEST].lower()
            if not (word.isascii() and word.isalpha()):
                continue
        found = [letter for letter, n in Counter(word.lower()).items() if n == wanted]
        if found:
            return word, rng.choice(found)
    return word, word[0].lower()


def _absent(rng: random.Random, word: str) -> str:
    """A letter that does not occur in a word, most often a frequent one."""
    frequent = [letter for letter in "eaiotnsrl" if letter not in word.lower()]
    others = [letter for letter in ascii_lowercase if letter not in word.lower()]
    return rng.choice(frequent if frequent and rng.random() < 0.6 else others)


def _letter(rng: random.Random, word: str, but: str = "") -> str:
    found = sorted({*word.lower()} - {but})
    return rng.choice(found) if found and rng.random() < 0.85 else _absent(rng, word + but)


def _filled(source: Source, question: str, word: str, letter: str = "") -> str:
    """The question with the word and the letter put in, as people give them."""
    rng = source.rng
    odds = rng.random()
    shown = word
    if odds < 0.05:
        shown = word.upper()
    elif odds < 0.12:
        shown = capital(word)
    elif odds < 0.17:
        shown = word.lower()
    if question.startswith("{x}") and rng.random() < 0.5:
        shown = capital(shown)
    quoted = rng.choice(QUOTES).format(shown) if rng.random() < 0.3 else shown
    question = question.replace("{x}", quoted).replace("{w}", shown)
    if not letter:
        return question
    given = letter.upper() if rng.random() < 0.25 else letter
    one = rng.choice((given, given, f'"{given}"', f'"{given}"', f"'{given}'", f"“{given}”"))
    many = rng.choice(
        (
            *(f"{given}'s", f"{given}'s", f"{given}'s", f"{given}s", f'"{given}"s', f"'{given}'s"),
            *(f"letters {given}", f'"{given}"', f"{given}’s", f'letters "{given}"'),
        )
    )
    return question.replace("{ls}", many).replace("{l}", one)
