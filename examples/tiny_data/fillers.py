"""What dialogs are filled with: names, towns, things, numbers, words that do not exist."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from llama import Tokenizer

# Kinds that any word can be the end of.
NAMES = tuple(
    """a thing,animal,building,club,country,firm,food,job,machine,man,mountain,person,pet,planet,\
plant,river,ship,shop,species,spot,thing,town,woman""".split(",")
)


def with_end(filler: str, word: str) -> str:
    """`word` in place of the last one, with its capital: "by the window" becomes "by the cloud"."""
    start, space, last = filler.rpartition(" ")
    return start + space + (word.title() if last[0].isupper() else word.lower())


def items(text: str) -> tuple[str, ...]:
    """What commas part."""
    return tuple(item.strip() for item in text.split(","))


def _tables(text: str) -> dict[str, tuple[str, ...]]:
    """Items of each kind: a line "kind: item, item" each."""
    lines = [line.partition(": ") for line in text.splitlines() if line]
    return {kind: items(listed) for kind, _, listed in lines}


TABLES = _tables(Path(__file__).with_suffix(".txt").read_text())
GIRLS = TABLES["girls"]
BOYS = TABLES["boys"]
SURNAMES = TABLES["surnames"]
PETS = TABLES["pets"]
TOWNS = TABLES["towns"]
COLORS = TABLES["colors"]
THINGS = TABLES["things"]
COUNTED = TABLES["counted"]
FOODS = TABLES["foods"]
JOBS = TABLES["jobs"]
ANIMALS = TABLES["animals"]
LANGUAGES = TABLES["languages"]
INSTRUMENTS = TABLES["instruments"]
SHOPS = TABLES["shops"]
MONTHS = """January February March April May June July August September October November
December""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
EXCLAMATIONS = """Amen Aye Boom Bravo Captain Cheers Done Dude End Friend Hooray Indeed Listen Look
Madam Master Okay Over Please Quack Right Sir Stop Sure True Well Wow Yes Yippee""".split()
# Made-up names: a beginning, at times a middle, an end.
STARTS = """A Al Am An As B Bar Bel Bl Br Bran C Cal Ch Cl Cor Cr D Dal Dar Dr E El Em Er F Fal Fen
Fl G Gal Gl Gor Gr H Hal Hen I Il In J Jor K Kal Kel Kh Kl Kn L Lan Lor M Mal Mar Mel Mor N Nal Nor
O Od Ol Or P Pal Per Ph Pl Pr Qu R Ral Ron Rh S Sel Sh Sk Sl Sn Sp St Sv T Tal Th Tor Tr Tw U Ul Um
V Val Ver Vl W Wil Wr X Y Yor Z Zan Zor Zw""".split()
VOWELS = (list("aeiou") * 5) + "ai au ea ee ei ia io oa oo ou".split()
MIDDLES = """b bb br c ck d dd dr f ff g gn gr h j k ks l ld ll lm ln lt lv m mb mm mp n nd ng nk nn
nt p pp r rd rk rl rm rn rr rt rv s sh sk ss st sz t th tr ts v w x y z zh""".split()
ENDS = """a an ar as ax e ek el en er es et i ia ic id ie ik il im in is ka ko la ley lin ma my na
no o ola on or os ot ra ri ro son ta tz u ul um us va ya yn za""".split()
TOWN_ENDS = """a ania berg borg burgh by dam don esk furt gard ham holm ia ina ino ka kirk leigh
lund mouth na opol ora ovo sk stad stead stein ta tino una wick worth y""".split()
TOWN_PARTS = (
    """Ash Beaver Birch Black Bridge Castle Clear Crow Deep East Elm Fair Fox Gold Green Hazel High
    King Lake Long Maple Mill North Oak Pine Queen Red River Rose Sand Silver South Spring Stone
    Swan Thorn West White Wind Wolf Wool""".split(),
    """bourne bridge brook bury burg burn cliff combe dale field ford gate grove ham haven hill
    mere mill moor mouth pool port side stead stow ton vale view ville water well wick wood
    worth""".split(),
)
TOWN_STARTS = "East Fort Great Lake Little New Old Port Saint San South Upper West".split()


def _chance(rng: random.Random, *shares: float) -> int:
    """The number of the case that came up, each with its share."""
    return rng.choices(range(len(shares)), shares)[0]


def _number(rng: random.Random) -> str:
    return str(rng.randint(*rng.choice(((2, 20), (21, 99), (100, 999), (1000, 9999)))))


def _made_up(rng: random.Random, ends: Sequence[str] = ENDS) -> str:
    """A name of two to four syllables."""
    name = rng.choice(STARTS)
    if name[-1].lower() not in "aeiou":
        name += rng.choice(VOWELS)
    for _ in range(_chance(rng, 65, 30, 5)):
        name += rng.choice(MIDDLES) + rng.choice(VOWELS)
    end = rng.choice(ends)
    return name + (rng.choice(MIDDLES) if end[0] in "aeiouy" else "") + end


def _surname(rng: random.Random) -> str:
    return rng.choice(SURNAMES) if rng.random() < 0.7 else _made_up(rng)


def _person(rng: random.Random) -> str:
    return _someone(rng, rng.random() < 0.5)


def _someone(rng: random.Random, woman: bool) -> str:
    first = rng.choice(GIRLS if woman else BOYS)
    match _chance(rng, 50, 28, 8, 3, 8, 3):
        case 0:
            return first
        case 1:
            return _made_up(rng)
        case 2:
            return f"{first} {_surname(rng)}"
        case 3:
            return f"{rng.choice(TABLES['women first' if woman else 'men first'])} {first}"
        case 4:
            own = TABLES["women's titles" if woman else "men's titles"]
            return f"{rng.choice(own + TABLES['titles'])} {_surname(rng)}"
    return f"{rng.choice(('Aunt', 'Grandma') if woman else ('Uncle', 'Grandpa'))} {first}"


def _first_words(names: Iterable[str], *others: str) -> frozenset[str]:
    return frozenset((*(name.split()[0] for name in names), *others))


WOMEN = _first_words((*GIRLS, *TABLES["women's titles"]), "Aunt", "Grandma", "Rose")
MEN = _first_words((*BOYS, *TABLES["men's titles"]), "Uncle", "Grandpa", "Jean")


def is_woman(person: str) -> bool | None:
    """Whether a name is a woman's, a man's (False), or it cannot be told."""
    first = person.partition(" ")[0]
    return True if first in WOMEN else False if first in MEN else None


def _town(rng: random.Random) -> str:
    match _chance(rng, 40, 25, 25, 10):
        case 0:
            return rng.choice(TOWNS)
        case 1:
            return "".join(map(rng.choice, TOWN_PARTS))
        case 2:
            return _made_up(rng, TOWN_ENDS)
    return f"{rng.choice(TOWN_STARTS)} {_made_up(rng, TOWN_ENDS)}"


def _country(rng: random.Random) -> str:
    if rng.random() < 0.65:
        return rng.choice(TABLES["countries"])
    return _made_up(rng, ("ia", "land", "stan", "ania", "ador", "onia", "istan"))


def _title(rng: random.Random) -> str:
    """A title of a book, a film, a song."""
    color, thing = rng.choice(COLORS).title(), rng.choice(THINGS).title()
    titles = (
        f"The {color} {thing}",
        f"The {thing} of {_town(rng)}",
        f"{_made_up(rng)} and the {thing}",
        f"A {thing} for {rng.choice(GIRLS)}",
        f"{rng.choice(BOYS)} and {rng.choice(GIRLS)}",
        f"The {rng.choice(TABLES['wild animals']).title()}",
        f"{rng.choice(DAYS)} in {_town(rng)}",
    )
    return f'"{rng.choice(titles)}"'


def _firm(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return _made_up(rng)
    name = _made_up(rng) if rng.random() < 0.5 else _surname(rng)
    return f"{name} {rng.choice('& Sons,Brothers,Foods,Group,Ltd,Motors,Tools'.split(','))}"


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choices("ABCDEFGHJKLMNPRSTUVWXYZ", k=rng.randint(1, 3)))
    return f"{letters}{rng.choice(('', '-'))}{rng.randint(10, 9999)}"


def _time(rng: random.Random) -> str:
    time = f"{rng.randint(1, 12)}:{5 * rng.randint(0, 11):02}"
    hour = f"{rng.randint(1, 12)} o'clock"
    return rng.choice((time, time, time, f"{time} a.m.", f"{time} p.m.", hour))


def _price(rng: random.Random) -> str:
    cents = f"{rng.randint(2, 99)}.{rng.randint(10, 99)}"
    amount = rng.choice((_number(rng), cents))
    return f"{amount} {rng.choice(('dollars', 'dollars', 'euros', 'pounds', 'crowns'))}"


def _date(rng: random.Random) -> str:
    month, day = rng.choice(MONTHS), rng.randint(1, 28)
    return rng.choice((f"{month} {day}", f"{month} {day}", f"{day} {month}"))


def _measure(*units: str) -> Callable[[random.Random], str]:
    return lambda rng: f"{_number(rng)} {rng.choice(units)}"


def _of(table: str, before: str = "") -> Callable[[random.Random], str]:
    """One of the items of a table, `before` it one of the words that "|" parts and a space."""
    listed, starts = TABLES[table], before.split("|") if before else [""]
    return lambda rng: f"{rng.choice(starts)} {rng.choice(listed)}".strip()


def _with(kind: str, *ways: str) -> Callable[[random.Random], str]:
    """A filler of another kind in one of the ways, such as "Lake {}"."""
    return lambda rng: rng.choice(ways).format(FILLERS[kind](rng))


FILLERS: dict[str, Callable[[random.Random], str]] = {
    "a thing": lambda rng: (
        f"a {rng.choice('big black blue brown green new red small white'.split())} "
        f"{rng.choice(THINGS)}"
    ),
    "age": lambda rng: str(rng.randint(2, 99)),
    "agenda": _of("agenda"),
    "allergen": _of("allergens"),
    "animal": _of("animals"),
    "appointment": lambda rng: (
        f"the {rng.choice('dentist doctor eye hospital passport vet'.split())} appointment of "
        f"{_person(rng)}"
    ),
    "book": _title,
    "building": _of("buildings", "the old|the new|the big|the small|the white|the red|the ruined"),
    "class": lambda rng: f"class {rng.randint(1, 12)}{rng.choice('ABCDE')}",
    "clothes": _of("clothes"),
    "club": lambda rng: f"the {rng.choice(TABLES['hobbies'])} club",
    "code": _code,
    "color": lambda rng: rng.choice(COLORS),
    "country": _country,
    "course": _of("lessons", "the morning course in|the evening course in|the course in"),
    "date": _date,
    "day": lambda rng: rng.choice(DAYS),
    "degree": _of("degrees"),
    "department": _of("departments"),
    "dish": _of("dishes", "the|grandma's|the spicy|the cold|the hot"),
    "drink": _of("drinks"),
    "duration": _of("durations"),
    "email": lambda rng: (
        f"{_made_up(rng).lower()}{rng.choice(('', rng.randint(1, 99)))}@"
        f"{_made_up(rng).lower()}.{rng.choice(('com', 'org', 'net'))}"
    ),
    "event": lambda rng: (
        f"the {rng.choice('art book charity food garden jazz music school street winter'.split())} "
        f"{rng.choice('concert fair festival market party race show'.split())}"
    ),
    "exclamation": lambda rng: rng.choice(EXCLAMATIONS),
    "fault": _of("faults"),
    "fear": _of("fears"),
    "feeling": _of("feelings"),
    "film": _title,
    "firm": _firm,
    "flight": lambda rng: f"flight {_code(rng)}",
    "floor": lambda rng: (
        f"the {rng.choice('first second third fourth fifth sixth seventh ninth top'.split())} floor"
    ),
    "food": lambda rng: rng.choice(FOODS),
    "frequency": _of("frequencies"),
    "genre": _of("genres"),
    "goods": _of("goods"),
    "habitat": _of("habitats"),
    "hair": _of("hair"),
    "hobby": _of("hobbies"),
    "hotel": lambda rng: (
        f"the {rng.choice((_town(rng), _surname(rng), rng.choice(COLORS).title()))} "
        f"{rng.choice(('Hotel', 'Inn', 'Lodge'))}"
    ),
    "illness": _of("illnesses"),
    "ingredient": _of("ingredients"),
    "instrument": lambda rng: f"the {rng.choice(INSTRUMENTS)}",
    "island": _with("river name", "the island of {}", "{} Island"),
    "job": lambda rng: rng.choice(JOBS),
    "language": _of("languages"),
    "length": _measure("miles", "feet", "meters", "kilometers", "yards"),
    "lesson": _of("lessons"),
    "machine": _of("machines", "the old|the new|the big|the broken|the red"),
    "man": lambda rng: _someone(rng, False),
    "material": _of("materials"),
    "meeting": lambda rng: (
        f"the {rng.choice('board budget monthly planning project sales staff'.split())} meeting"
    ),
    "minutes": lambda rng: f"{rng.randint(2, 90)} {rng.choice(('minutes', 'hours'))}",
    "month": lambda rng: rng.choice(MONTHS),
    "mountain": lambda rng: f"Mount {_made_up(rng)}",
    "music": _of("music"),
    "number": _number,
    "order": lambda rng: f"order {_code(rng)}",
    "parcel": lambda rng: (
        f"the {rng.choice(('parcel', 'package', 'letter'))} {rng.choice(('from', 'for'))} "
        f"{_person(rng)}"
    ),
    "part": _of("parts"),
    "percent": lambda rng: f"{rng.randint(2, 95)} percent",
    "person": _person,
    "pet": lambda rng: _made_up(rng) if rng.random() < 0.3 else rng.choice(PETS),
    "phone": lambda rng: rng.choice(
        (
            f"{rng.randint(100, 999)}-{rng.randint(100, 999)}",
            f"{rng.randint(100, 999)}-{rng.randint(1000, 9999)}",
            f"0{rng.randint(10, 99)} {rng.randint(100000, 999999)}",
        )
    ),
    "planet": lambda rng: f"the planet {_made_up(rng)}",
    "plant": _of("plants", "the tall|the old|the little|the wild|the young"),
    "prey": _of("preys"),
    "price": _price,
    "prize": _of("prizes"),
    "product": lambda rng: f"the {_made_up(rng)} {rng.choice((2, 3, 5, 7, 10, 20, 100, 300, 500))}",
    "project": lambda rng: f"Project {rng.choice((_made_up(rng), rng.choice(COLORS).title()))}",
    "reason": _of("reasons"),
    "river": lambda rng: f"the {rng.choice(('River', 'river'))} {_made_up(rng)}",
    "river name": _made_up,
    "room": lambda rng: rng.choice(
        (
            f"room {rng.randint(2, 450)}",
            f"the {rng.choice(COLORS)} room",
            f"the {rng.choice('dining assembly lecture music sports main'.split())} hall",
        )
    ),
    "school": lambda rng: (
        f"{rng.choice((_town(rng), _surname(rng), 'Saint ' + rng.choice(GIRLS)))} "
        f"{rng.choice(('School', 'School', 'College', 'Academy', 'High School'))}"
    ),
    "seat": lambda rng: f"{rng.randint(1, 48)}{rng.choice('ABCDEF')}",
    "season": _of("seasons"),
    "shape": _of("shapes"),
    "ship": lambda rng: (
        f"the {rng.choice((_made_up(rng), rng.choice(GIRLS), 'Sea ' + rng.choice(PETS)))}"
    ),
    "shop": _of("shops", "the big|the new|the old|the red|the small|the corner|the cheap"),
    "sight": _of("sights"),
    "size": _of("sizes"),
    "song": _title,
    "sound": _of("sounds"),
    "species": _of(
        "wild animals", "the gray|the spotted|the common|the giant|the dwarf|the striped"
    ),
    "speed": lambda rng: f"{rng.randint(3, 299)} {rng.choice(('miles', 'kilometers'))} an hour",
    "sport": _of("sports"),
    "spot": _of("spots"),
    "state": _of("states"),
    "street": lambda rng: (
        f"{rng.choice((_surname(rng), rng.choice(TOWN_PARTS[0])))} "
        f"{rng.choice(('Street', 'Road', 'Lane', 'Avenue', 'Square'))}"
    ),
    "team": _with(
        "town", "{} United", "{} City", "FC {}", "{} Athletic", "Sporting {}", "{} Wolves FC"
    ),
    "temperature": lambda rng: f"{rng.randint(2, 99)} degrees",
    "thing": lambda rng: f"the {rng.choice(COLORS)} {rng.choice(THINGS)}",
    "time": _time,
    "topic": _of("topics"),
    "town": _town,
    "train": lambda rng: f"the {rng.choice(('bus', 'train', 'boat', 'ferry'))} to {_town(rng)}",
    "trait": _of("traits"),
    "transport": _of("transport"),
    "vehicle": lambda rng: f"the {rng.choice(COLORS)} {rng.choice(TABLES['vehicles'])}",
    "view": _of("views"),
    "weather": _of("weathers"),
    "website": lambda rng: f"www.{_made_up(rng).lower()}.{rng.choice(('com', 'org', 'net'))}",
    "weight": _measure("kilos", "pounds", "grams", "tons"),
    "woman": lambda rng: _someone(rng, True),
    "year": lambda rng: str(rng.randint(1700, 2024)),
}


def made_up_words(
    rng: random.Random,
    tokenizer: Tokenizer,
    words: Sequence[str],
    held_out: Iterable[str],
    times: int,
) -> list[str]:
    """Words that do not exist, of the tokens that `words` have, so that each is spelled often.

    A token hides its letters: only a word in which it occurs tells them. What occurs in fewer than
    `times` of `words`, each as it stands after a space, is put together with others until it does.
    None of them contains a word in `held_out`.
    """
    forbidden = re.compile("|".join(map(re.escape, sorted(held_out))) or "(?!)")  # or nothing
    split = [tokenizer.encode(f" {word}") for word in words]
    seen = Counter(token for tokens in split for token in set(tokens))
    starts = sorted({tokens[0] for tokens in split})
    others = sorted({token for tokens in split for token in tokens[1:]})
    made: dict[str, None] = {}
    for token in starts + others:
        for _ in range(50):
            if seen[token] >= times:
                break
            tokens = [token] if token in starts else [rng.choice(starts), token]
            tokens += rng.choices(others, k=rng.randint(1, 2))
            word = tokenizer.decode(tokens).strip()
            as_it_is = tokenizer.encode(f" {word}") == tokens
            if as_it_is and len(word) <= 12 and word not in made and not forbidden.search(word):
                made[word] = None
                seen.update(set(tokens))
    return list(made)
