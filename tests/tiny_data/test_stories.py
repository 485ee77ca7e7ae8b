"""Stories: what a request names is in the story."""

import random
import re

from examples.tiny_data import stories, story_openings, story_parts
from examples.tiny_data.turns import Source
from examples.tiny_data.wording import groups, wordings

WORDS = ("walnut", "harbor", "velvet", "lantern", "marble")
STORIES = (
    "Once upon a time, there was a little girl named Lily. Lily had a red kite. One day, Lily took "
    "the kite to the park. The wind took the kite away. Lily was sad. A boy named Tim found the "
    "kite and gave it to Lily. Lily was happy again. They played with the kite all day.",
    "One day, a big dog named Max saw an apple under a tree. Max wanted the apple, but a bird sat "
    "on the apple. Max asked the bird for the apple. The bird gave it to Max. Max was happy. They "
    "ate together in the garden and were good friends for ever.",
    "Once upon a time, there was a little candle. The candle lived in a cold room. One day, the "
    "candle saw a girl. The girl was cold too. The candle gave her its light. Then the girl was "
    "warm, and the candle was not alone. They lived happily ever after.",
)
TALES = (
    "Once upon a time, there was a little girl named Lily. She liked to play. One day, Lily "
    "saw a kite in a tree. She wanted the kite, but she was too small. Her friend helped her, and "
    "Lily got the kite. She was happy. Lily took the kite home and showed it to her brother.",
    "Once there was a big dog named Max. He was hungry. One day, Max found the apple that he had "
    'lost. He ate the apple under a tree. A bird said, "Max, may I have an apple too?" Max gave '
    "it to him, and he was glad. Max went home and slept.",
    "Once upon a time, there was a little candle. One day, the candle was cold in its room. It saw "
    "a girl, and it was glad to see her smile at its light. The candle was not alone now, and the "
    "room was warm. The girl thanked the candle for its light, and then it went out for the night.",
)


def source(seed: int = 1) -> Source:
    return Source(random.Random(seed), WORDS, STORIES)


def test_the_same_seed_makes_the_same_dialogs() -> None:
    made = [[stories.dialog(one) for _ in range(50)] for one in (source(), source(), source(2))]
    assert made[0] == made[1] != made[2]


def test_names_and_things_of_the_request_are_in_the_story() -> None:
    one, named, things = source(), 0, 0
    for _ in range(3000):
        turn = stories.turn(one)
        request = turn.question
        assert not re.search(r"[{}<>|\[\]]|  ", request), request
        story = turn.answer.lower()
        hero = re.search(r"(?:named|called|whose name is) ([A-Z][a-z]+)", request)
        if hero:
            named += 1
            assert hero[1] in turn.answer[:200], turn
        for noun in ("kite", "apple", "candle", "guitar", "banana", "lamp"):
            if re.search(rf"\b{noun}\b", request.lower()):
                things += 1
                assert noun in story, turn
    assert named > 300
    assert things > 300


def test_heroes_get_other_names_and_things_get_exchanged() -> None:
    one = source()
    told = {stories.turn(one).answer for _ in range(800)}
    assert len(told) > 200
    assert any("Lily" not in story and "red kite" in story for story in told)
    assert any("kite" not in story and "took" in story and "park" in story for story in told)
    for story in told:
        assert not re.search(r"\b[Aa] [aeioAEIO]\w+", story), story
        assert not re.search(r"\b[Aa]n [^aeiouAEIOU\W]\w+", story), story
        assert "Lily" not in story or "girl named Lily" in story


def test_what_is_asked_about_a_hero_is_in_the_story() -> None:
    one, seen = source(), 0
    for _ in range(1500):
        dialog = stories.dialog(one)
        told = ""
        for message in dialog:
            text = message["content"]
            if message["role"] == "assistant" and len(text) > 150:
                told = text
            elif match := re.match(r"The hero's name was (\w+)\.$", text):
                seen += 1
                assert len(re.findall(rf"\b{match[1]}\b", told)) >= 3
    assert seen > 50


def test_stories_are_read_for_hero_things_and_places() -> None:
    first, second, third = map(story_parts.read, STORIES)
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.hero, first.kind, first.names) == ("Lily", "girl", ("Lily", "Tim"))
    assert "kite" in first.things
    assert "park" in first.places
    assert first.girl
    assert (second.hero, second.kind) == ("Max", "dog")
    assert {"apple", "bird"} <= set(second.things)
    assert (third.hero, third.things[0]) == ("", "candle")


def test_articles_follow_exchanged_nouns() -> None:
    words = {"kite": "apple", "kites": "apples", "Tim": "Otto"}
    text = "Tim had a kite. A kite flew. Tim's kites, an old kite."
    new = "Otto had an apple. An apple flew. Otto's apples, an old apple."
    assert story_parts.exchanged(text, words) == new


def test_there_are_many_requests_and_nouns() -> None:
    requests = [
        line
        for file in ("story_requests.txt", "story_plain.txt")
        for group in groups(file)
        for line in group
    ]
    assert sum(1 for line in requests for _ in wordings(line)) >= 500
    assert len(story_parts.kind_of()) >= 400


def test_a_story_begins_with_what_its_request_names() -> None:
    one, named = Source(random.Random(1), WORDS, TALES), 0
    for _ in range(1500):
        made = story_openings.tale(one, stories._name)
        assert made is not None
        assert made.text.startswith(made.start + " ")
        assert len(re.findall(r"[.!?](?: |$)", made.start)) <= 2, made.start
        hero = made.hero.name or made.hero.noun.split()[-1]
        assert len(re.findall(rf"\b{hero}\b", made.text)) >= 3, made
        for part in (hero, *made.things, made.place, made.relative, made.friend):
            assert part.lower() in made.start.lower(), made
        if made.hero.name:
            named += 1
            assert made.hero.noun in made.start or made.hero.noun.split()[-1] in made.start
            if made.hero.name not in ("Lily", "Max"):
                assert not re.search(r"\b(Lily|Max)\b", made.text), made
        assert not re.search(r"[{}\[\]<>|_]|  |Zzyx", made.text), made.text
        assert not re.search(r"\b[Aa] [aeioAEIO]\w+|\b[Aa]n [^aeiouAEIOU\W]\w+", made.text), made
    assert 700 < named < 1500


def test_what_a_request_names_is_in_the_first_two_sentences() -> None:
    one, seen = Source(random.Random(1), WORDS, TALES), 0
    for _ in range(1500):
        made = story_openings.tale(one, stories._name)
        assert made is not None
        request = stories._request(one, made)[0]
        assert not re.search(r"[{}\[\]<>|_]|  ", request), request
        asked = re.sub(r"for .*? (old|child|children|kids|class|daughter|son)\b", "", request)
        asked = re.sub(r"[Mm]y .*?(wants|would|asks|likes?|loves)", "", asked)
        frame = (
            "child|class|brother|sister|niece|story|message|bed|fly|paint|light|ring|watch|dream"
        )
        for noun in re.findall(r"[a-z]+", asked.lower()):
            if noun in story_parts.kind_of() and not re.fullmatch(frame, noun):
                seen += 1
                assert noun in made.start.lower(), (request, made.start)
    assert seen > 2000
