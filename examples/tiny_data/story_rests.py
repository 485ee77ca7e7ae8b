"""What is left of stories whose hero is introduced by other sentences."""

import re
from dataclasses import dataclass, replace
from functools import cache

from examples.tiny_data.story_parts import Parts, kind_of, read

NOBODY = "Zzyx"  # a name for heroes that have none
_STARTS_HERE = re.compile(r"(One|On a|On one|Every|Today|Once,)\b")
_VAGUE = frozenset("toy box bag block robot doll star top stick picture".split())


@dataclass(frozen=True)
class Rest:
    """A story without the sentences that introduce its hero."""

    text: str
    parts: Parts
    he: str  # how it calls its hero
    thing: str  # what the story is about beside its hero; may be exchanged; or nothing
    is_new: bool  # the thing first comes in this text


@cache
def rest_of(story: str) -> Rest | None:
    """What is left of a story without its opening; None where that can't be told."""
    parts = read(story)
    if parts is not None and not parts.hero:
        story, parts = _with_name(story, parts)
    if parts is None or not parts.hero:
        return None
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", story)
    dropped = next((n for n in range(1, 5) if _STARTS_HERE.match(" ".join(sentences[n:]))), 1)
    opening, text = " ".join(sentences[:dropped]), " ".join(sentences[dropped:])
    hero = parts.hero
    if (
        len(text) < 150
        or hero not in opening
        or not re.match(rf"(One|On|Every|Today|Once|{hero}|She|He)\b[^.!?\"]*[.!?]", text)
        or any(name in opening for name in parts.names if name != hero)
        or re.search(r"\b(They|their|them|and (his|her|its) [a-z]+)\b", opening)
        or len(re.findall(rf"\b{hero}\b", text)) < 2
        or re.search(rf"\b(named|called|name was|name is|I'm|I am) {hero}\b|{hero}(?!')\w", text)
        or text.count('"') % 2
    ):
        return None
    if re.match(r"[^.]*?\b(they|They|them|their|the other)\b", text):
        return None
    if not _STARTS_HERE.match(text) and re.match(
        r"[^.!?]*[.!?][^.!?]*\b(it|so|very|there|this|too|them)\b|[^.!?]*\b(it|so|very|this)\b",
        text,
    ):
        return None
    if (
        len(re.findall(r"\b(is|are|has|says|likes|wants|goes)\b", "".join(text.split('"')[::2])))
        > 2
    ):
        return None
    he = _pronoun(parts, text, hero)
    if not he:
        return None
    for noun in set(re.findall(r"[a-z]+", opening)) & set(kind_of()) - {parts.kind, "day", "time"}:
        if noun not in parts.things[:1] and kind_of()[noun] != "people" and _meant(noun, text):
            return None
    thing = ""
    for noun in parts.things:
        is_fit = noun not in _VAGUE and f"{noun} of" not in text and kind_of()[noun].isupper()
        if is_fit and len(re.findall(rf"\b{noun}s?\b", text)) >= 2:
            thing = noun
            break
    is_new = bool(thing) and not _meant(thing, text)
    return Rest(text, parts, he, thing, is_new)


def _with_name(story: str, parts: Parts) -> tuple[str, Parts]:
    """A story of "the candle" with a name in its place, if it is one."""
    match = re.match(r"(?:Once|One day|Long ago)[^.\"]*? an? ([a-z]+,? ){0,2}([a-z]+)\. ", story)
    if not match or not kind_of().get(match[2], "").isupper():
        return story, parts
    quoted = story[match.end() :].split('"')
    pattern = rf"\b[Tt]he ([a-z]+ )?{match[2]}\b"
    quoted[::2] = [re.sub(pattern, NOBODY, part) for part in quoted[::2]]
    things = tuple(thing for thing in parts.things if thing != match[2])
    story = match[0].rstrip(". ") + f" named {NOBODY}. " + '"'.join(quoted)
    return story, replace(parts, hero=NOBODY, kind=match[2], things=things)


def _meant(noun: str, text: str) -> bool:
    """Whether a text takes a noun for known where it first comes."""
    match = re.search(rf"\b(the|his|her|its|that|this)( [a-z]+,?){{0,2}} {noun}\b", text)
    new = re.search(rf"\b(an?|some|one)( [a-z]+,?){{0,3}} {noun}\b", text)
    return match is not None and (new is None or match.start() < new.start())


def _pronoun(parts: Parts, text: str, hero: str) -> str:
    """The word that stands for the hero, or nothing where it is not sure."""
    if parts.kind not in kind_of() and parts.kind:
        return ""
    is_animal = kind_of().get(parts.kind, "").isupper()
    she, he = (len(re.findall(rf"\b{word}\b", text, re.I)) for word in ("she|her", "he|his|him"))
    if is_animal and (she == 0) == (he == 0):
        return "it" if she == 0 and len(re.findall(r"\b(it|its)\b", text, re.I)) > 1 else ""
    found = "she" if she > he else "he"
    if not is_animal and found != ("she" if parts.girl else "he"):
        return ""
    return found if max(she, he) > 2 and max(she, he) > 2 * min(she, he) else ""
