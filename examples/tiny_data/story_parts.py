"""What a story is about: its hero, things and places; and how they are exchanged."""

import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from examples.tiny_data.fillers import BOYS, GIRLS

_DETERMINERS = frozenset(
    """a an the his her their my your our this that its one another some each every no any two three
    many""".split()
)
# Words that are verbs as often as nouns, or mean too little to be asked for.
_UNSURE = frozenset(
    """bear block book brush button camp card comb cook drain dream drum duck dress dust fan fire
    fish fly game hammer hide hook hose house judge light lock log mess model nail nap net noise
    note oil orange paint park pin pipe plant play pot present race rain ring rock saw scale seal
    shower sign sink slide smoke snow spell stage stamp star stick storm story string surprise swing
    tape thing tie tire toast top toy track trap treat trick trip tube turkey watch water wave well
    whip whisper whistle wind wish wood zip milk mask pony friend mistake problem hole adventure
    seat tail wing man woman boy girl person child brother sister mother father baby kid""".split()
)
_PLAIN = frozenset(
    "person people way tail hole noise problem mistake seat friend thing mess nap story".split()
)
_NO_NAMES = frozenset(
    """Mom Mommy Mum Mummy Mama Ma Dad Daddy Papa Pa Mr Mrs Miss Ms Dr God Grandma Grandpa Granny
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday Christmas Birthday Halloween Easter End
    Santa Yes No Hello Hi Thank Thanks Oh Wow Ok Okay Let Please Sorry The This That What Why How
    Look Do Can You We It If My Your She He They But And So Then One Goodbye Bye I Don January
    February March April May June July August September October November December English The Bear
    Cat Dog Bird Uncle Aunt Auntie Sir Captain King Queen Princess Prince Doctor Come Stop Wait
    Help Good Nice Don't Happy Little Big Be Is Are Not Now Here There Where Who When
    Will""".split()
)
_UNFIT = re.compile(
    r"\b(?:hurt very badly|crashed|war|wars|weapon|kill(?:s|ed)?|died|"
    r"dead|die|blood|gun|shoot|shot|wine|beer|drunk|naked|hell|god)\b",
    re.I,
)
_HERO = re.compile(
    r"\b([Aa]n? (?:[a-z]+,? ){0,4}?)([a-z]+)"
    r"(,? (?:named|called)|,? (?:whose|and (?:his|her|its)) name was) ([A-Z][a-z]+)\b"
)
_STARTS = re.compile(
    r"([A-Z][a-z]+) (?:and|was|liked?|loved?|had|has|is|went|lived?|wanted|saw|found)\b"
)
_SOUNDS = re.compile(
    r"\b(?:bark|woof|meow|purr|moo|quack|roar|oink|chirp|tweet|neigh|ribbit|buzz|wings?|flew|fly|"
    r"flies|swam|swim|fins?|web|tail|claws|shell|hop|hops|hopped|beak|trunk|fur|feathers?)\w*"
)


@dataclass(frozen=True)
class Parts:
    """Of a story: its hero, whose kind is "girl" or the like, or nothing; all names; nouns."""

    hero: str
    kind: str
    words: str  # what says more of the kind: "little", "brave little", or nothing
    names: tuple[str, ...]
    girl: bool
    boy: bool
    things: tuple[str, ...]
    places: tuple[str, ...]
    is_early: bool  # the hero's name


@cache
def kinds() -> dict[str, list[str]]:
    """Nouns by their kind."""
    text = (Path(__file__).parent / "nouns.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line[:1] != "#" and line]
    return {
        kind: [noun for noun in nouns.split() if "-" not in noun]
        for kind, _, nouns in (line.partition(": ") for line in lines)
    }


@cache
def plurals() -> dict[str, str]:
    """The plural of each noun."""
    return {
        noun.partition("/")[0]: noun.partition("/")[2] or _plural(noun)
        for nouns in kinds().values()
        for noun in nouns
    }


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "sh", "ch", "x")) else "s")


@cache
def kind_of() -> dict[str, str]:
    """The kind of each noun."""
    return {noun.partition("/")[0]: kind for kind, nouns in kinds().items() for noun in nouns}


def with_article(noun: str) -> str:
    """ "a kite", "an apple", "snow"."""
    if kind_of().get(noun) == "mass" or noun in ("scissors", "stairs", "woods"):
        return noun
    return f"{'an' if noun[0] in 'aeiou' and noun[:3] not in ('uni',) else 'a'} {noun}"


@cache
def read(story: str) -> Parts | None:
    """The parts of a story; None for one that is not to be told."""
    if not 200 <= len(story) <= 1100 or _UNFIT.search(story) or story[-1] not in '.!?"':
        return None
    if not story.isascii() or story[0] in '"':
        return None
    opening = " ".join(re.split(r"(?<=[.!?])\s+", story)[:2])
    lower = Counter(re.findall(r"[a-z]+", story))
    capital = Counter(re.findall(r"\b[A-Z][a-z]+\b", story))
    inside = set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+\b", story))
    names = [
        name
        for name in capital
        if name in inside and name not in _NO_NAMES and not lower[name.lower()]
    ]
    hero, kind, more = "", "", ""
    if match := _HERO.search(opening):
        hero, kind = match[4], match[2]
        words = re.sub(r"^[Aa]n? ", "", match[1]).strip()
        more = words if words in ("little", "big", "small", "young", "brave", "old") else ""
    elif (match := _STARTS.match(story)) and match[1] in names and capital[match[1]] > 2:
        hero = match[1]
    if hero and (hero in _NO_NAMES or lower[hero.lower()] or capital[hero] < 3):
        return None
    if hero and hero not in names:
        names.append(hero)
    if any(one != other and one.startswith(other[:3]) for one in names for other in names):
        return None
    things, places = _nouns(story, lower, kind)
    she, he = (len(re.findall(rf"\b{word}\b", story, re.I)) for word in ("she|her", "he|his|him"))
    return Parts(
        hero,
        kind,
        more,
        tuple(sorted(names, key=lambda name: name != hero)),
        kind in ("girl", "woman", "lady", "princess") or hero in GIRLS or (not kind and she > he),
        kind in ("boy", "man", "prince", "king") or hero in BOYS or (not kind and he >= she),
        things,
        places,
        bool(hero),
    )


def _nouns(story: str, lower: Counter[str], hero: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Things that occur early and at least twice, most often first, and places."""
    words = re.findall(r"[A-Za-z]+|[.,!?;]", story)
    early = len(words) * 0.5
    seen, first = Counter[str](), dict[str, int]()
    for at in range(2, len(words)):
        word = words[at]
        if word in kind_of() and (
            words[at - 1].lower() in _DETERMINERS
            or (words[at - 2].lower() in _DETERMINERS and words[at - 1] not in kind_of())
            or kind_of()[word] == "mass"
        ):
            after = words[at + 1] if at + 1 < len(words) else "."
            if after in kind_of() or after.endswith("ing"):
                continue
            seen[word] += 1
            first.setdefault(word, at)
    found = [noun for noun, _ in seen.most_common() if first[noun] < early and noun != hero]
    places = [noun for noun in found if kind_of()[noun] == "places"]
    things = [
        noun
        for noun in found
        if noun not in _PLAIN
        and kind_of()[noun] != "places"
        and seen[noun] >= 2
        and seen[noun] + lower[plurals()[noun]] >= 0.6 * lower[noun]
    ]
    return tuple(things[:4]), tuple(places[:2])


def exchanged(story: str, words: Mapping[str, str]) -> str:
    """The story with other names and nouns; articles before them follow."""
    if not words:
        return story
    pattern = rf"\b(?:([Aa])n? )?({'|'.join(map(re.escape, words))})\b"

    def other(match: re.Match[str]) -> str:
        new = words[match[2]]
        if match[1] is None:
            return new
        vowel = new[0].lower() in "aeiou" and not new.lower().startswith(("uni", "eu"))
        return f"{match[1]}{'n' * vowel} {new}"

    return re.sub(pattern, other, story)


def other_noun(rng: random.Random, story: str, noun: str) -> dict[str, str]:
    """What to exchange a noun for, in singular and plural; nothing where that makes no sense."""
    kind = kind_of().get(noun, "")
    if not kind.isupper() or noun in _UNSURE or (kind == "ANIMALS" and _SOUNDS.search(story)):
        return {}
    others = [
        other
        for other in (each.partition("/")[0] for each in kinds()[kind])
        if other not in story.lower() and other not in ("teddy", "top", "saw", "fly", "yo")
    ]
    if not others or re.search(rf"\b{noun}[a-z]*-|-{noun}|{noun}{noun}", story):
        return {}
    other = rng.choice(others)
    forms = {noun: other, plurals()[noun]: plurals()[other]}
    return forms | {one.title(): two.title() for one, two in forms.items()}
