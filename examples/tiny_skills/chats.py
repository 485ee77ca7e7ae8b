"""Talk without a skill: stories that are asked for, small talk, letters that are counted."""

import random
import re
from collections import Counter

from examples.tiny_skills.dialogs import Skills
from examples.tiny_skills.forms import (
    COUNT_REQUESTS,
    LENGTH_REQUESTS,
    SMALL_TALK,
    STORY_REQUESTS,
    STORY_REQUESTS_ABOUT,
    SYSTEM_PROMPTS,
    TOPICS,
)
from llama import Dialog, Message


def chat(skills: Skills) -> Dialog:
    """One to four questions of any kind."""
    rng, turns = skills.rng, []
    for _ in range(rng.randint(1, 4)):
        kind = rng.random()
        if kind < 0.7:
            questions, replies = rng.choice(SMALL_TALK)
            turns.append((rng.choice(questions), rng.choice(replies)))
        elif kind < 0.8:
            turns.append(tell(rng, rng.choice(skills.stories)))
        else:
            turns.append(count(rng, rng.choice(skills.words)))
    return conversation(rng, turns)


def conversation(rng: random.Random, turns: list[tuple[str, str]]) -> Dialog:
    """Questions and answers, now and then with a system prompt or sloppily typed."""
    dialog = []
    if rng.random() < 0.15:
        dialog.append(Message(role="system", content=rng.choice(SYSTEM_PROMPTS)))
    for question, reply in turns:
        if rng.random() < 0.2:
            question = question[0].lower() + question[1:].rstrip(".!")
        dialog.append(Message(role="user", content=question))
        dialog.append(Message(role="assistant", content=reply))
    return dialog


def tell(rng: random.Random, story: str) -> tuple[str, str]:
    """A question for a name or a thing in `story`, or just for a story, and the story."""
    found = Counter(re.findall(r"[a-z]+", story.lower()))
    topics = [
        ("an " if thing[0] in "aeiou" else "a ") + thing for thing in TOPICS if found[thing] >= 3
    ]
    names = re.findall(r"named ([A-Z][a-z]+)", story)[:2]
    if names and rng.random() < 0.4:
        topics = [*names, " and ".join(names)]
        if rng.random() < 0.3:
            kind = re.search(rf"(?:a|an) [a-z ]{{3,20}} named {names[0]}", story)
            topics = [kind.group()] if kind else topics
    if not topics or rng.random() < 0.2:
        return rng.choice(STORY_REQUESTS), story
    return rng.choice(STORY_REQUESTS_ABOUT).format(rng.choice(topics)), story


def count(rng: random.Random, word: str) -> tuple[str, str]:
    """A question for a count of letters in `word`, and its answer, which spells it first."""
    spelled = "-".join(word.upper())
    if rng.random() < 0.3:
        question = rng.choice(LENGTH_REQUESTS).format(word)
        return question, f"{spelled}\nThere are {len(word)} letters."
    letter = rng.choice(word.lower())
    number = word.lower().count(letter)
    question = rng.choice(COUNT_REQUESTS).format(letter, word)
    if rng.random() < 0.5:
        question = f"Spell the word {word}. {question}"
    return question, f"{spelled}\nThe letter {letter} is found {number} time{'s' * (number > 1)}."
