"""Stories whose heroes and things are those that the request names."""

import re
from dataclasses import replace
from functools import cache

from examples.tiny_data import talk
from examples.tiny_data.fillers import BOYS, GIRLS
from examples.tiny_data.story_openings import Tale, joined, tale
from examples.tiny_data.story_parts import (
    Parts,
    exchanged,
    kind_of,
    other_noun,
    read,
    with_article,
)
from examples.tiny_data.turns import Source, Turn, capital, dialog_of
from examples.tiny_data.wording import choose, groups, typed
from llama import Message

SYSTEMS = """You are a [kind |good |friendly |]storyteller.
You tell [short |little |]stories [to children|for small children|to a child].
You are a helpful assistant.
You are a [helpful|friendly] assistant [that|who] tells stories.
You write [stories|tales] for children.
Tell the user stories.""".splitlines()
IN = {"beach": "at the", "farm": "on a", "island": "on an", "hill": "on a", "mountain": "on a"}
IN |= {"sea": "at the", "lake": "at a", "pond": "at a", "pool": "at the", "river": "at a"}
IN |= {"school": "at", "zoo": "at the", "playground": "at the", "park": "in the", "yard": "in a"}
IN |= {"woods": "in the", "ocean": "by the", "bridge": "on a", "street": "on a", "stage": "on a"}
IN |= {"backyard": "in the", "kitchen": "in the", "market": "at the", "store": "in a"}
IN |= {"attic": "in the", "bathroom": "in the", "station": "at the", "airport": "at the"}
WHO = ("Who was the story about?", "Who was it about?", "Who is the hero?", "who was that about")
NAME = (
    "What was the [hero's name|name of the hero]?",
    "What is the [hero's name|name of the hero]?",
    "What [was|is] the hero called?",
    "[Remind me, what|And what] was the [hero's name|name of the hero]?",
    "[Tell me|Please tell me] the hero's name[.|!]",
    "I forgot the hero's name. What was it?",
)
PRAISE = (
    (
        "[Thanks|Thank you][!|.| for the story!]",
        "You are welcome! [I am glad that you like it.|Sleep well.|]",
    ),
    ("[What a nice|That was a nice|A great] story[!|.]", "Thank you! I am glad that you like it."),
    ("I [liked|loved] [it|the story|that][!|.]", "Thank you! I am glad that you like it."),
)


def turn(source: Source) -> Turn:
    """A request for a story, and the story."""
    return _told(source)[0]


def dialog(source: Source) -> list[Message]:
    """One or two stories, and talk about them."""
    rng = source.rng
    system = choose(rng, rng.choice(SYSTEMS)) if rng.random() < 0.15 else ""
    turns = [talk.turn(source, first=True)] if rng.random() < 0.1 else []
    for number in range(rng.choice((1, 1, 1, 2))):
        told, parts = _told(source)
        if number:
            told, parts = _told(source, again=True)
        turns.append(told)
        if rng.random() < 0.3 and parts.hero:
            turns += _asked(source, parts)
    if rng.random() < 0.15:
        said, reply = rng.choice(PRAISE)
        turns.append(Turn(typed(rng, choose(rng, said)), choose(rng, reply), free=True))
    return dialog_of(system, turns)


@cache
def _requests() -> tuple[list[str], list[str], list[str]]:
    """Wordings for what is to be in a story, for any, and for a very short one."""
    about = groups("story_requests.txt")[0]
    plain, short = groups("story_plain.txt")
    return about, plain, short


def _told(source: Source, again: bool = False) -> tuple[Turn, Parts]:
    rng = source.rng
    about, plain, short = _requests()
    kind = rng.random()
    if kind < 0.08:
        story, parts = min((_story(source) for _ in range(12)), key=lambda found: len(found[0]))
        request = choose(rng, rng.choice(short))
    elif kind < 0.2:
        story, parts = _story(source)
        request = choose(rng, rng.choice(plain if again else plain[:-1]))
    elif rng.random() < 0.68 and (made := tale(source, _name)):
        hero = made.hero
        request, is_kept = _request(source, made)
        if not is_kept and rng.random() < 0.2:
            request = _careless(source, request)
        things = tuple(thing.split()[-1] for thing in made.things)
        names = (hero.name,) if hero.name else ()
        noun = hero.noun.split()[-1]
        of = Parts(hero.name, noun, "", names, False, False, things, (), True)
        return Turn(request, made.text, free=True), of
    else:
        while True:
            story, parts = _story(source)
            if parts.hero or parts.things:
                break
        story, parts = _renewed(source, story, parts)
        asked = [line for line in about if again or not line.startswith("[Once more")]
        request = choose(rng, rng.choice(asked))
        if "{topic}" in request:
            request = request.replace("{topic}", _topic(source, parts))
        else:
            request = request.replace("{about}", _about(source, parts))
        request = request.replace("I 'd", "I'd")
        return Turn(
            request if rng.random() < 0.8 else _careless(source, request), story, free=True
        ), parts
    return Turn(typed(rng, request.replace("I 'd", "I'd")), story, free=True), parts


def _request(source: Source, made: Tale) -> tuple[str, bool]:
    """A request for a story; whether it is to stay as it is."""
    rng, hero = source.rng, made.hero
    _, clauses, lets, starts = groups("story_requests.txt")
    about = _requests()[0]
    kind = rng.random()
    if kind < 0.07:
        return choose(rng, rng.choice(starts)).replace("{start}", made.start), True
    subject = _subject(source, made)
    if made.actions and not made.relative and kind < 0.2:
        action, thing = rng.choice(made.actions)
        done = f"{subject} {action.said(action.do, hero, thing)}"
        request = choose(rng, rng.choice(lets)).replace("{infinitive}", done)
    elif made.actions and kind < 0.45:
        clause = f"{subject} {_does(source, made)}"
        request = choose(rng, rng.choice(clauses)).replace("{clause}", clause)
    else:
        asked = [line for line in about[:-4] if "{topic}" not in line or made.things]
        if kind < 0.55 and made.things:
            asked = [line for line in asked if "{topic}" in line]
        request = choose(rng, rng.choice(asked)).replace("{topic}", _words(source, made))
        request = request.replace("{about}", _of(source, made, subject))
    return capital(request.replace("I 'd", "I'd")), False


def _subject(source: Source, made: Tale) -> str:
    """The hero of a request."""
    rng, hero = source.rng, made.hero
    noun = hero.noun if rng.random() < 0.5 else hero.noun.split()[-1]
    with_a = f"{'an' if noun[0] in 'aeiou' and noun[:3] != 'uni' else 'a'} {noun}"
    if not hero.name:
        return with_a
    named = [f"{with_a} {word} {hero.name}" for word in ("named", "called", "named")]
    more = (hero.name, hero.name, f"{hero.name} the {noun.split()[-1]}", with_a)
    return rng.choice((*named, *more))


def _does(source: Source, made: Tale) -> str:
    """What the hero does, at times where: "finds a kite in a forest"."""
    rng = source.rng
    said = [action.said(action.does, made.hero, thing) for action, thing in made.actions]
    if made.relative:
        a = "an" if made.relative[0] in "aeiou" else "a"
        return f"has {a} {made.relative} who {said[0]}"
    text = " and ".join(said[: rng.choice((1, 2, 2))])
    return f"lives {made.place} and {text}" if made.place and rng.random() < 0.5 else text


def _of(source: Source, made: Tale, subject: str) -> str:
    """Hero, things and place, with or without what is done."""
    rng, hero = source.rng, made.hero
    things = [thing for thing in made.things if re.match(r"(an?|the|some) ", thing)]
    friend = f" and {made.friend}" if made.friend and rng.random() < 0.7 else ""
    place = f" {made.place}" if made.place and rng.random() < 0.7 else ""
    if place and rng.random() < 0.3:
        place = f" who lives{place}"
    if made.relative:
        said = _does(source, made).partition(" who ")[2]
        owner = f"{hero.name}'s {made.relative}"
        return rng.choice((f"{owner} who {said}", f"{subject} whose {made.relative} {said}"))
    if made.actions and not friend and rng.random() < 0.4:
        if rng.random() < 0.75 or not subject.startswith("a"):
            return f"{subject} who {_does(source, made)}"
        action, thing = rng.choice(made.actions)
        return f"{subject} {action.said(action.doing, hero, thing)}"
    if not things or rng.random() < 0.1:
        return f"{subject}{friend}{place}"
    if friend:
        return f"{joined([subject, made.friend, *things])}"
    if rng.random() < 0.15:
        return joined(things) + (f" {made.place}" if place else "")
    if rng.random() < 0.65:
        rng.shuffle(things)
        return joined([subject, *things]) if rng.random() < 0.8 else joined([*things, subject])
    return f"{subject}{place} {rng.choice(('with', 'and', 'and'))} {joined(things)}"


def _words(source: Source, made: Tale) -> str:
    """What is to be in the story, as a list."""
    rng = source.rng
    things = [one.split()[-1] for one in made.things]
    hero = rng.choice(list(filter(None, (made.hero.name, made.hero.noun.split()[-1]))))
    words = [hero, *things, *([made.place.split()[-1]] if made.place else [])]
    rng.shuffle(words)
    return rng.choice((", ", ", ", " + ", " and ", "; ", ", ")).join(words)


def _careless(source: Source, request: str) -> str:
    """Names keep their letters: only the start and the end of the request change."""
    request = request[:1].lower() + request[1:] if not request.startswith("I") else request
    return request.rstrip(".!") if source.rng.random() < 0.6 else request.lower().rstrip(".?!")


def _story(source: Source) -> tuple[str, Parts]:
    """A story that may be told."""
    while True:
        story = source.rng.choice(source.stories)
        parts = read(story)
        if parts is not None:
            return re.sub(r"\s*\n\s*", "\n", story), parts


def _renewed(source: Source, story: str, parts: Parts) -> tuple[str, Parts]:
    """Mostly with other names, now and then with another thing or animal."""
    rng, words = source.rng, dict[str, str]()
    if rng.random() < 0.7:
        for name in parts.names:
            if name == parts.hero or rng.random() < 0.6:
                words[name] = _name(source, name, parts, {*parts.names, *words.values()}, story)
    nouns = [noun for noun in (parts.kind, *parts.things[:2]) if noun]
    if nouns and rng.random() < 0.25:
        words |= other_noun(rng, story, rng.choice(nouns))
    renewed = replace(
        parts,
        hero=words.get(parts.hero, parts.hero),
        kind=words.get(parts.kind, parts.kind),
        names=tuple(words.get(name, name) for name in parts.names),
        things=tuple(words.get(noun, noun) for noun in parts.things),
    )
    return exchanged(story, words), renewed


def _name(source: Source, old: str, parts: Parts, taken: set[str], story: str) -> str:
    """Another name, for a boy or a girl where the old one is."""
    is_hero = old == parts.hero
    girl = old in GIRLS or (is_hero and parts.girl)
    boy = old in BOYS or (is_hero and parts.boy)
    while True:
        name = source.pick("person")
        fits = not (girl and name in BOYS) and not (boy and name in GIRLS)
        if fits and name not in taken and name.lower() not in story.lower():
            return name


def _hero(source: Source, parts: Parts) -> str:
    """The hero, by name, by kind or by both."""
    rng, hero, kind = source.rng, parts.hero, parts.kind
    if not kind:
        return hero
    noun = f"{parts.words} {kind}" if parts.words and rng.random() < 0.5 else kind
    with_a = with_article(noun)
    return rng.choice(
        (
            hero,
            f"{with_a} named {hero}",
            f"{with_a} named {hero}",
            f"{with_a} called {hero}",
            f"{with_a} whose name is {hero}",
            f"{hero} the {kind}",
            f"the {kind} {hero}",
            with_a,
        )
    )


def _about(source: Source, parts: Parts) -> str:
    """What is to be in the story, as part of a sentence."""
    rng = source.rng
    things = [with_article(noun) for noun in parts.things if noun != parts.kind]
    rng.shuffle(things)
    chosen = things[: rng.choice((0, 1, 1, 2))]
    if parts.hero and (not chosen or rng.random() < 0.75):
        subject = _hero(source, parts)
        if rng.random() < 0.1 and len(parts.names) > 1:
            subject = f"{parts.hero} and {parts.names[1]}"
        if not chosen:
            text = subject
        elif rng.random() < 0.6:
            text = f"{subject} and {' and '.join(chosen)}"
        elif rng.random() < 0.3:
            text = f"{' and '.join(chosen)} and {subject}"
        else:
            text = f"{subject} with {' and '.join(chosen)}"
    else:
        text = " and ".join(chosen or things[:1])
    if parts.places and rng.random() < 0.25:
        place = rng.choice(parts.places)
        text += f" {IN[place] if place in IN else 'in ' + with_article(place).split()[0]} {place}"
    return text


def _topic(source: Source, parts: Parts) -> str:
    """What is to be in the story, as a list."""
    rng = source.rng
    words = [*parts.things[:2], *parts.places[:1], *filter(None, (parts.hero, parts.kind))]
    words = rng.sample(words, min(len(words), rng.choice((1, 2, 2, 3, 3, 4))))
    return rng.choice((", ", ", ", " + ", " and ", "; ", ", ")).join(dict.fromkeys(words))


def _asked(source: Source, parts: Parts) -> list[Turn]:
    """Questions about the story's hero."""
    rng, hero = source.rng, parts.hero
    whom = f"a {parts.kind} named {hero}" if parts.kind in kind_of() else hero
    if whom[2:3] in "aeiou" and whom.startswith("a "):
        whom = f"an {whom[2:]}"
    about = f"The story was about {whom}."
    named = f"The hero's name was {hero}."
    turns = [
        Turn(typed(rng, rng.choice(WHO)), about, f"{hero}.", f"{hero}.", about),
        Turn(typed(rng, choose(rng, rng.choice(NAME))), named, f"{hero}.", f"{hero}.", named),
    ]
    if parts.kind in kind_of():
        what = re.sub("^.*about ", "", about).partition(" named ")[0]
        question = rng.choice(
            (f"What was {hero}?", f"Who was {hero}?", f"What kind of hero was {hero}?")
        )
        answer = f"{hero} was {what}."
        turns.append(Turn(question, answer, None, f"{what.capitalize()}.", answer))
    return rng.sample(turns, rng.choice((1, 1, 2)))
