"""What arguments and results of tools are made of."""

from collections.abc import Callable
from typing import Any

from examples.tiny_data import fillers
from examples.tiny_data.fillers import items
from examples.tiny_data.turns import Source

_MESSAGES = items(
    """I will be late, See you soon, The meeting is off, Happy birthday, Dinner is ready,
    I am at home, Call me back, The door is open, We won the game, I lost my keys, Good luck,
    The train is late, I am sick today, Bring some bread, Thank you for the book, Where are you,
    The cat is hungry, I love you, Do not wait for me, The car is broken, Come at once,
    I have the tickets, It starts at noon, You are the best, The baby sleeps, I found the map"""
)
_PHRASES = items(
    """good morning, thank you, where is the station, I am hungry, how are you, see you tomorrow,
    the house is red, my name is Sam, one more please, the water is cold, I like you, good night,
    happy new year, the dog sleeps, we go home, a cup of tea, welcome, it rains, who are you"""
)
_VERBS = items(
    """buy, call, check, clean, collect, find, fix, give back, look for, move, order, pack, paint,
    pay for, pick up, print, repair, return, sell, send, sort, wash, wrap, test, move, change"""
)
_NOUNS = items(
    """birthday, budget, camping, choir, cooking, dentist, dinner, exam, family, football, garden,
    history, holiday, ideas, invoice, lunch, meeting, music, orders, party, picnic, plan, project,
    recipes, report, school, sports, spring, summer, team, training, travel, wedding, work"""
)
_ROOMS = items(
    """kitchen, bedroom, bathroom, living room, hall, cellar, attic, office, garage, dining room,
    nursery, laundry room, library, guest room, studio, workshop"""
)
_DEVICES = items(
    """TV, radio, heater, printer, lamp, laptop, toaster, oven, fan, computer, phone, camera,
    speaker, dishwasher, fridge, kettle, mixer, projector, router, tablet, watch, scooter"""
)
_LANDS = items(
    """France, Spain, Italy, Norway, Sweden, Poland, Greece, Japan, China, India, Brazil, Peru,
    Chile, Egypt, Kenya, Canada, Mexico, Cuba, Turkey, Ireland, Iceland, Austria, Hungary"""
)
_FILES = "txt csv md pdf jpg png json py log doc".split()

CHOICES: dict[str, tuple[str, ...]] = {
    "account": items("savings, checking, travel, family, business, house, shared"),
    "animal_name": items("owl, robin, parrot, swan, duck, cat, dog, rabbit, pony, hamster, goose"),
    "coin": items("heads, tails"),
    "command": items("ls -l, pwd, whoami, date, df -h, git status, uname -a, ps aux, make test"),
    "cuisine": items("Italian, Greek, Thai, Indian, Mexican, French, Chinese, Turkish, Korean"),
    "currency": items("dollars, euros, pounds, yen, francs, pesos, rubles, crowns, rupees, lira"),
    "department": items("sales, finance, research, support, marketing, the workshop"),
    "device": _DEVICES,
    "doctor": items("dentist, surgeon, vet, psychologist, pharmacist, midwife, nurse"),
    "game": items("chess, checkers, hangman, poker, go, bingo, tag, dominoes, solitaire, snake"),
    "grade": tuple("BCDF"),
    "job_name": items("baker, cook, nurse, pilot, teacher, welder, driver, painter, waiter, judge"),
    "land": _LANDS,
    "lang": tuple(fillers.LANGUAGES),
    "length_unit": items("meters, feet, inches, miles, yards, kilometers, centimeters"),
    "locked": items("locked, open, unlocked, closed"),
    "moon": items("full, new, a thin crescent, half full"),
    "mountain": items("Mount Arden, Kelspitz, Mont Oran, Mount Bel, Torre Alta, Mount Zor"),
    "onoff": items("on, off, broken, asleep, busy"),
    "planet": items("Mars, Venus, Saturn, Jupiter, Neptune, Mercury, Uranus"),
    "problem": items("printer is jammed, no sound, lamp is broken, login fails, screen is black"),
    "quality": items("good, bad, very good, poor, fair, right, wrong"),
    "reason": items("too small, too large, broken, the wrong color, too late, dirty, torn"),
    "roman": items("XII, XIV, MCM, LXX, CIX, XLV, DCL, MMX"),
    "room": _ROOMS,
    "shelf": items("shelf 3, shelf 12, shelf 40, the top shelf, shelf 7"),
    "shipping": items("on its way, delivered, lost, in the shop, packed, at the post office"),
    "shop_kind": tuple(fillers.SHOPS),
    "sign": items("lion, virgin, scorpion, ram, bull, crab, archer"),
    "size": items("small, large, medium, tiny, huge, long, narrow, round"),
    "sky": items(
        "sunny, rainy, cloudy, windy, foggy, snowy, stormy, clear, hot, icy, mild, dry, gray, humid"
    ),
    "state": items("up, down, on time, late, fine, broken, green, red, ready, running"),
    "subject": items("math, history, music, art, biology, physics, geography, sports, chemistry"),
    "topping": items("ham, mushrooms, salami, tuna, cheese, onions, spinach, olives, peppers"),
    "traffic": items("heavy, light, slow, blocked, normal, dense"),
    "truth": items("yes, no, true, false"),
    "unit": items("liters, gallons, cups, pints, grams, pounds, hours, days, weeks, bytes"),
    "weight_unit": items("grams, pounds, kilograms, ounces, tons, stones"),
    "wind": items("weak, strong, from the north, from the west, 20 miles an hour, calm"),
    "zone": items("UTC+1, UTC-5, UTC+8, UTC, UTC+3, UTC-8"),
}
NUMBERS = {
    "small": (2, 20),
    "int": (2, 999),
    "percent": (5, 95),
    "warmth": (12, 60),
    "degrees": (-9, 35),
    "big": (1000, 999999),
    "year": (1800, 2030),
}


def word(source: Source) -> str:
    """Any word, in small letters."""
    return source.rng.choice(source.words).lower()


def _thing(source: Source) -> str:
    if source.rng.random() < 0.15:
        return source.pick("thing").removeprefix("the ")
    return fillers.FILLERS["thing"](source.rng).removeprefix("the ")


def _title(source: Source) -> str:
    rng = source.rng
    first, last = rng.choice(fillers.COLORS).title(), word(source).title()
    return rng.choice((f"The {first} {last}", f"{first} {last}", f"My {last}", f"The {last}"))


def _noun(source: Source) -> str:
    return source.rng.choice(_NOUNS) if source.rng.random() < 0.6 else word(source)


def _message(source: Source) -> str:
    if source.rng.random() < 0.4:
        return source.rng.choice(_MESSAGES)
    forms = ("The {0} is in the {1}", "I have the {0}", "Bring the {0} and the {1}", "No {0} today")
    return source.rng.choice(forms).format(word(source), word(source))


def _phrase(source: Source) -> str:
    if source.rng.random() < 0.6:
        return source.rng.choice(_PHRASES)
    return source.rng.choice(("the {}", "my {} is here", "no {}")).format(word(source))


def _file(source: Source) -> str:
    name = f"{word(source)}.{source.rng.choice(_FILES)}"
    return f"{word(source)}/{name}" if source.rng.random() < 0.25 else name


def _code(source: Source) -> str:
    letters = "".join(source.rng.choices("ABCDEFGHKLMNPRSTUVWXZ", k=source.rng.randint(1, 3)))
    return f"{letters}{source.rng.randint(10, 9999)}"


def _task(source: Source) -> str:
    return f"{source.rng.choice(_VERBS)} the {word(source)}"


def _time(source: Source) -> str:
    time = source.pick("time")
    half = source.rng.choice(("", "", "", " am", " pm"))
    return time + half if time[-1].isdigit() else time


def _sql(source: Source) -> str:
    table, column = word(source), word(source)
    forms = (f"SELECT * FROM {table}", f"SELECT {column} FROM {table}", f"DELETE FROM {table}")
    return source.rng.choice(forms)


def _several(kind: str) -> Callable[[Source], list[Any]]:
    def values(source: Source) -> list[Any]:
        made = [of_kind(source, kind) for _ in range(source.rng.randint(2, 4))]
        return list(dict.fromkeys(made))

    return values


_KINDS: dict[str, Callable[[Source], Any]] = {
    "card": lambda source: (
        f"{source.rng.choice(('queen', 'king', 'ace', 'ten'))} of "
        f"{source.rng.choice(('hearts', 'spades', 'clubs', 'diamonds'))}"
    ),
    "code": _code,
    "dates": _several("date"),
    "decimal": lambda source: round(source.rng.uniform(0.1, 40), source.rng.randint(1, 2)),
    "bytes": lambda source: f"{source.rng.randint(1, 999)} {source.rng.choice(('KB', 'MB'))}",
    "file": _file,
    "files": _several("file"),
    "finding": lambda source: (
        f"The {word(source)} is {source.rng.choice((*CHOICES['size'], *fillers.COLORS))}"
    ),
    "flight": lambda source: f"{source.rng.choice('ABKLS')}{_code(source)}",
    "folder": lambda source: source.rng.choice(("{}", "/{}", "{}/new", "/home/{}")).format(
        word(source)
    ),
    "list": _several("word"),
    "msg": _message,
    "noun": _noun,
    "percentage": lambda source: f"{source.rng.randint(5, 99)} percent",
    "phrase": _phrase,
    "picture": lambda source: (
        f"{source.pick('animal')} {source.rng.choice(('on', 'under', 'with'))} a {_thing(source)}"
    ),
    "question": lambda source: f"What is the {word(source)} of {source.pick('town')}?",
    "sql": _sql,
    "square": lambda source: source.rng.choice("abcdefgh") + source.rng.choice("12345678"),
    "strange": lambda source: f"{word(source)[::-1]} {word(source)[:3]}",
    "street": lambda source: (
        f"{source.rng.randint(1, 99)} {word(source).title()} "
        f"{source.rng.choice(('Street', 'Road', 'Lane', 'Avenue'))}"
    ),
    "symbol": lambda source: "".join(source.rng.choices("ABCDEFGHIKLMNOPRSTUVWXYZ", k=3)),
    "task": _task,
    "tasks": _several("task"),
    "thing": _thing,
    "time": _time,
    "times": _several("time"),
    "title": _title,
    "titles": _several("title"),
    "topic": lambda source: source.rng.choice((_noun, _thing, _title, word))(source),
    "url": lambda source: (
        f"{source.rng.choice(('www.', 'https://', ''))}{word(source)}."
        f"{source.rng.choice(('com', 'org', 'net', 'io'))}"
    ),
    "word": word,
}


def of_kind(source: Source, kind: str) -> Any:
    """A value of a kind: one of this module's, or of `fillers.FILLERS`; "a|b" is a choice."""
    if "|" in kind:
        return source.rng.choice(kind.split("|"))
    if kind in NUMBERS:
        return source.rng.randint(*NUMBERS[kind])
    if kind in CHOICES:
        return source.rng.choice(CHOICES[kind])
    if kind in _KINDS:
        return _KINDS[kind](source)
    if kind in ("person", "town") or source.rng.random() < 0.15:
        return source.pick(kind)
    return fillers.FILLERS[kind](source.rng)
