"""Schedules, recipes, lists of names and things, and beginnings of stories."""

import re

from examples.tiny_data.claims import Claim, Text
from examples.tiny_data.fillers import COUNTED
from examples.tiny_data.turns import Source

LESSONS = """Art Biology Breakfast Break Chemistry Choir Chess Cooking Dance Drama English French
Geography History Latin Lunch Math Meeting Music Physics Reading Singing Sports Swimming
Training Writing Yoga""".split()
INGREDIENTS = """butter cheese chocolate cocoa cream flour honey milk oil pepper rice salt sugar
water yeast yogurt""".split()
NAMED = re.compile(r"\b(?:a|an) (?:[a-z]+ ){0,3}?([a-z]+) (?:named|called) ([A-Z][a-z]+)\b")
NAMED_NOUNS = "bear bird boy cat dog duck fish frog girl lion monkey".split()
NAMED_ASKS = (
    "What is the name of the {s}?",
    "What is the {s}'s name?",
    "What is the {s} called?",
    "How is the {s} called?",
    "Who is the {s}?",
    "What name does the {s} have?",
    "What do they call the {s}?",
)
ORDINALS = "first second third fourth fifth sixth".split()


def schedule(source: Source) -> Text:
    """What is when."""
    rng = source.rng
    things = rng.sample(LESSONS, rng.randint(2, 6) + 2)
    start, lines, claims = rng.randint(6, 10), list[str](), list[Claim]()
    mark = rng.choice(
        ("{t} {x}", "{t}: {x}", "{t} - {x}", "{x}: {t}", "{x} at {t}", "| {t} | {x} |")
    )
    for thing in things[:-2]:
        time = f"{start}:{rng.choice(('00', '10', '15', '30', '45'))}"
        start += rng.choice((1, 1, 2))
        lines.append(mark.format(t=time, x=thing))
        asks = ("When is {s}?", "What time is {s}?", "When does {s} start?", "At what time is {s}?")
        who = (f"What is at {time}?", f"What starts at {time}?", f"What happens at {time}?")
        claims.append(Claim(thing, time, f"{thing} is at {time}.", asks, who, False, True, ""))
    title = rng.choice(
        ("Schedule", "Timetable", "Plan for today", "Today", "Our day", "Program", "Monday")
    )
    missing = [(rng.choice(claims[0].asks), thing) for thing in things[-2:]]
    missing += [(f"What is at {rng.randint(2, 5)}:05?", ""), ("Who teaches {s}?", things[0])]
    return Text([f"{title}\n" + "\n".join(lines)], claims, missing, is_laid_out=True)


def recipe(source: Source) -> Text:
    """How much of what."""
    rng = source.rng
    names = rng.sample(INGREDIENTS, rng.randint(2, 5) + 3)
    dish = rng.choice(
        (
            "Bread",
            "Pancakes",
            "Apple cake",
            "Waffles",
            "Cookies",
            "Soup",
            "Lemon pie",
            "Pizza dough",
        )
    )
    lines, claims = list[str](), list[Claim]()
    asks = (
        "How much {s} do I need?",
        "How much {s} is needed?",
        "How much {s} goes in?",
        "How much {s} do you need?",
        "What amount of {s} is needed?",
        "How much {s} is in the recipe?",
        "How much {s} does the recipe need?",
    )
    mark, dash = (
        rng.choice(("{v} {s}", "{v} of {s}", "{s}: {v}", "{s} - {v}")),
        rng.choice(("", "- ", "* ")),
    )
    amounts = rng.sample(range(2, 20), len(names))
    for name, amount in zip(names[:-3], amounts, strict=False):
        value = rng.choice(
            (f"{amount * 25} g", f"{amount} cups", f"{amount} spoons", f"{amount * 10} ml")
        )
        lines.append(dash + mark.format(v=value, s=name))
        claims.append(Claim(name, value, f"You need {value} of {name}.", asks, (), False, True, ""))
    minutes = rng.randint(10, 90)
    tail = ""
    missing = [(rng.choice(asks), name) for name in names[-3:]]
    if rng.random() < 0.6:
        tail = f"\nMix everything and bake it for {minutes} minutes."
        bake = (
            "How long is it baked?",
            "How long do I bake it?",
            "For how long does it have to bake?",
            "How long does it stay in the oven?",
        )
        claims.append(Claim(dish, f"{minutes} minutes", f"Bake it for {minutes} minutes.", bake))
    else:
        missing.append(("How long do I bake it?", ""))
    missing.append(("How many people is it for?", ""))
    return Text([f"{dish}\n" + "\n".join(lines) + tail], claims, missing, is_laid_out=True)


def numbered(source: Source) -> Text:
    """Names in an order."""
    rng, names = source.rng, list[str]()
    while len(names) < rng.randint(3, 6):
        names.append(source.fresh("person", " ".join([".", *names])))
    title = rng.choice(
        (
            "Class list",
            "Guests",
            "Winners",
            "Players",
            "Team",
            "Members",
            "Who comes",
            "Results",
            "Waiting list",
        )
    )
    mark = rng.choice(("{n}. {x}", "{n}) {x}", "{n} {x}", "#{n} {x}", "{n}: {x}"))
    lines = [mark.format(n=i + 1, x=name) for i, name in enumerate(names)]
    claims = list[Claim]()
    for i, name in enumerate(names):
        clause = f"{name} is number {i + 1}."
        asks = (
            "What number is {s}?",
            "Which number is {s}?",
            "At which number is {s}?",
            "What is {s}'s number?",
            "Which place is {s} in?",
        )
        who = (
            f"Who is number {i + 1}?",
            f"Who is {ORDINALS[i]} on the list?",
            f"Which name is number {i + 1}?",
            f"Who has number {i + 1}?",
        )
        claims.append(Claim(name, str(i + 1), clause, asks, who, True, True, ""))
    count = (
        "How many names are on the list?",
        "How many people are there?",
        "How many are on the list?",
        "Count the names.",
    )
    claims.append(
        Claim("the list", str(len(names)), f"There are {len(names)} names on the list.", count)
    )
    stranger = source.fresh("person", " ".join(names))
    missing = [
        ("What number is {s}?", stranger),
        (f"Who is number {len(names) + 2}?", ""),
        ("How old is {s}?", names[0]),
        ("Where does {s} live?", names[1]),
    ]
    return Text([f"{title}\n" + "\n".join(lines)], claims, missing, is_laid_out=True)


def shopping(source: Source) -> Text:
    """How many of what, on a list or in a sentence."""
    rng = source.rng
    names = rng.sample(COUNTED, rng.randint(2, 6) + 2)
    asks = (
        "How many {s} are there?",
        "How many {s}?",
        "How many {s} do we need?",
        "How many {s} are on the list?",
        "What number of {s} is on the list?",
    )
    title = rng.choice(
        ("Shopping list", "To buy:", "We need", "In the box", "Things to bring:", "Stock")
    )
    claims, items = list[Claim](), list[str]()
    amounts = rng.sample(range(2, 100), len(names))
    for name, amount in zip(names[:-2], amounts, strict=False):
        items.append(f"{amount} {name}")
        claims.append(
            Claim(
                name,
                str(amount),
                f"There are {amount} {name}.",
                asks,
                (f"Of what are there {amount}?",),
                False,
                True,
                "",
            )
        )
    if rng.random() < 0.4:
        count = ("How many kinds of things are on the list?", "How many lines does the list have?")
        claims.append(
            Claim("the list", str(len(items)), f"There are {len(items)} things on the list.", count)
        )
    body = (
        "\n".join(rng.choice(("- ", "* ", "")) + item for item in items)
        if rng.random() < 0.7
        else ", ".join(items)
    )
    missing = [(rng.choice(asks), name) for name in names[-2:]] + [
        ("How much do the {s} cost?", names[0])
    ]
    return Text([f"{title}\n{body}"], claims, missing, is_laid_out=True)


def story(source: Source) -> Text:
    """The beginning of a story in which somebody is named; a list if there is none."""
    rng = source.rng
    for story in rng.sample(source.stories, min(len(source.stories), 20)):
        told = " ".join(re.split(r"(?<=[.!?])\s+", story)[: rng.randint(2, 6)])
        found = NAMED.findall(told)
        named = dict(found)
        if named and len(named) == len(found) == len(set(named.values())) and len(told) < 800:
            break
    else:
        return shopping(source)
    claims = [
        Claim(noun, name, f"The name of the {noun} is {name}.", NAMED_ASKS, (), False, True, "")
        for noun, name in named.items()
    ]
    absent = [noun for noun in NAMED_NOUNS if noun not in told.lower()]
    missing = [(rng.choice(NAMED_ASKS[:6]), noun) for noun in rng.sample(absent, 3)]
    missing += [
        (rng.choice(("How old is {s}?", "What is {s}'s phone number?", "How tall is {s}?")), name)
        for name in named.values()
        if not re.search(r"\d|years old|tall", told)
    ]
    return Text([told], claims, missing)
