"""Writes labelled sentences, to try classifiers on: is what they tell good or bad?

    python -m examples.mood_data --out moods
    llama tasks train moods/train.jsonl --out moods/head.json --valid_data moods/test.jsonl

A seeded generator makes them: 400 to train on, 200 other sentences of the same words, and 200 in
`new_words.jsonl` whose adjectives and events are in none of those: what is right there was not
learned from the examples. One sentence in five says "not", which turns it around.

    {"text": "Mia thinks that the soup was not tasty.", "label": "negative"}
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from examples.tiny_data.fillers import BOYS, GIRLS, items
from llama.cli import run
from llama.storage.files import atomic_write
from llama.tasks import LabelledText

LABELS = {"english": ("positive", "negative"), "chinese": ("积极", "消极")}
# Things, and adjectives that say something good or bad of them.
QUALITIES = (
    (
        items("the soup, the cake, the bread, the pizza, the salad, the apple, the ice cream"),
        items("delicious, tasty, yummy, sweet, fresh, perfect, wonderful, great, good, amazing"),
        items("rotten, sour, burnt, cold, awful, terrible, bad, bitter, dry, yucky"),
    ),
    (
        items("the teacher, the dog, the neighbor, the king, the new boy, the bus driver"),
        items("kind, friendly, brave, nice, gentle, clever, cheerful, helpful, honest, polite"),
        items("mean, rude, cruel, angry, grumpy, selfish, lazy, nasty, unfair, scary"),
    ),
    (
        items("the house, the room, the toy, the park, the hotel, the bike, the movie, the game"),
        items("beautiful, lovely, pretty, clean, fun, comfortable, bright, exciting, safe, cozy"),
        items("ugly, dirty, broken, boring, noisy, dangerous, smelly, dark, messy, useless"),
    ),
)
EVENTS = (
    """{n} won the race and everyone clapped. / {n} got a new puppy and smiled all day. / {n} found
    the lost kitten under the bed. / {n} and {m} hugged and became friends again. / The rain stopped
    and {n} saw a rainbow. / Grandma gave {n} a big gift. / {n} learned to swim and felt proud. /
    {m} shared the cookies with {n}. / {n} laughed and danced with {m}. / The doctor said that {n}
    was healthy again. / {n} danced with joy. / {m} thanked {n} for the help.""",
    """{n} fell and hurt one knee. / {n} lost the favorite toy and cried. / {m} broke the vase and
    hid it. / {n} and {m} had a big fight. / The storm destroyed the little house. / {n} was sick
    and had to stay in bed. / Nobody came to the party of {n}. / {m} took the cookies away from {n}.
    / {n} got lost in the forest and was afraid. / {n} missed the train and had to wait in the rain.
    / The dog bit {n}. / {m} yelled at {n}.""",
)
FRAMES = (
    *("{S} was {a}.", "{S} was very {a}.", "{n} said that {s} was {a}.", "I think {s} is {a}."),
    *("{n} told {m} that {s} was so {a}.", "{S} looks {a} to {n}.", "{n} and {m} found {s} {a}."),
)
NEGATED = ("{S} was not {a}.", "{n} said that {s} was not {a}.", "{S} is not {a} at all.")


def labelled_sentences(
    seed: int = 1, number: int = 400, language: str = "english"
) -> tuple[list[LabelledText], list[LabelledText], list[LabelledText]]:
    """`number` examples to train on, and half as many to test with, twice: see above.

    All are different, and half of each are of one label.
    """
    rng = random.Random(seed)
    qualities = [(things, [_halves(rng, w) for w in words]) for things, *words in QUALITIES]
    events = [_halves(rng, [" ".join(e.split()) for e in kind.split("/")]) for kind in EVENTS]
    seen: set[str] = set()

    def examples(count: int, half: int) -> list[LabelledText]:
        found: list[LabelledText] = []
        while len(found) < count:
            is_bad = len(found) % 2
            n, m = rng.sample(GIRLS + BOYS, 2)
            if rng.random() < 0.3:
                text = rng.choice(events[is_bad][half]).format(n=n, m=m)
            else:
                subjects, words = rng.choice(qualities)
                negated = rng.random() < 2 / 7  # a fifth of all
                subject = rng.choice(subjects)
                adjective = rng.choice(words[is_bad != negated][half])
                frame = rng.choice(NEGATED if negated else FRAMES)
                capital = subject[0].upper() + subject[1:]
                text = frame.format(S=capital, s=subject, a=adjective, n=n, m=m)
            if text not in seen:
                seen.add(text)
                found.append(LabelledText(text, LABELS[language][is_bad]))
        rng.shuffle(found)
        return found

    return examples(number, 0), examples(number // 2, 0), examples(number // 2, 1)


def _halves(rng: random.Random, words: Sequence[str]) -> list[list[str]]:
    mixed = rng.sample(words, len(words))
    return [mixed[::2], mixed[1::2]]


def main(out: str, language: str = "english", number: int = 400, seed: int = 1) -> None:
    """Writes train.jsonl, test.jsonl, new_words.jsonl and, two of each label, few.jsonl.

    Args:
        out: folder of the files.
        language: of the labels: english, or chinese (积极 and 消极).
        number: of examples to train on; half as many are made to test with.
        seed: of all choices.
    """
    train, test, new_words = labelled_sentences(seed, number, language)
    of_label = [[e for e in train if e.label == label][:2] for label in LABELS[language]]
    few = [example for pair in zip(*of_label, strict=True) for example in pair]
    Path(out).mkdir(parents=True, exist_ok=True)
    files = {"train": train, "few": few, "test": test, "new_words": new_words}
    for name, examples in files.items():
        lines = [json.dumps(each._asdict(), ensure_ascii=False) for each in examples]
        with atomic_write(Path(out) / f"{name}.jsonl") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())


if __name__ == "__main__":
    run(main)
