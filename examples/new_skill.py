"""Teaches the bundled model a new skill from 200 examples, in a minute.

    python -m examples.new_skill --out records

The skill is to make a record in JSON of what is said about somebody:

    user: Mia is a baker from Rome. She is 34 years old.
    assistant: {"name": "Mia", "job": "a baker", "town": "Rome", "age": 34}

What is trained is an adapter (LoRA), which is written to `records`; the model stays as it is. Both
answer the same 200 questions, with names, jobs, towns and ages that are in no example.
"""

import json
import random
from pathlib import Path

from examples.tiny_skills import Skills
from llama import Dialog, Llama, Message
from llama.cli import run
from llama.lora import LoraConfig
from llama.tokenizer import Tokenizer
from llama.training import TrainConfig, dialog_document, train

TINY = Path(__file__).parents[1] / "params" / "tiny"
SAYINGS = (
    "{name} is {job} from {town}. {she} is {age} years old.",
    "{name}, who is {age}, works as {job} in {town}.",
    "In {town} lives {job} named {name}. {she} is {age}.",
    "{name} is {age} years old, lives in {town} and is {job}.",
    "Meet {name}, {job}. {she} is {age} and comes from {town}.",
)
CONFIG = TrainConfig(
    epochs=40,
    batch_size=2,
    seq_len=512,
    learning_rate=3e-3,
    lora=LoraConfig(r=16),
)


def main(out: str, base: str = str(TINY), examples: int = 200, seed: int = 1) -> None:
    """Trains an adapter and prints how many answers are right without it and with it.

    Args:
        out: folder that the adapter goes to.
        base: folder of the model.
        examples: how many to learn from.
        seed: of the examples and of the training.
    """
    checkpoint, adapter = Path(base), Path(out)
    tokenizer = Tokenizer(checkpoint / "tokenizer.model")
    learned = records(random.Random(seed), examples, held_out=False)
    documents = [dialog_document(tokenizer, dialog) for dialog in learned]
    asked = records(random.Random(seed), 200, held_out=True)
    before = right_answers(Llama.build(checkpoint, max_batch_size=32), asked)
    train(adapter, tokenizer, documents, CONFIG, base=checkpoint)
    after = right_answers(Llama.build(checkpoint, adapter=adapter, max_batch_size=32), asked)
    print(f"right without the adapter: {before:.1%}, with it: {after:.1%}")


def records(rng: random.Random, count: int, held_out: bool) -> list[Dialog]:
    """Dialogs of what is said of somebody and its record, made of fillers of one side."""
    skills = Skills(rng, (), (), (), held_out=held_out)
    dialogs: list[Dialog] = []
    for _ in range(count):
        record = {kind: skills.pick(kind) for kind in ("person", "job", "town", "age")}
        name, job, town, age = record.values()
        said = rng.choice(SAYINGS).format(
            name=name, job=job, town=town, age=age, she=rng.choice(("She", "He"))
        )
        answer = json.dumps({"name": name, "job": job, "town": town, "age": int(age)})
        dialogs.append(
            [Message(role="user", content=said), Message(role="assistant", content=answer)]
        )
    return dialogs


def right_answers(llama: Llama, dialogs: list[Dialog]) -> float:
    """The share of answers that are the expected record, at temperature 0."""
    results = llama.chat_completion([dialog[:1] for dialog in dialogs], temperature=0)
    answers = [result["generation"]["content"] for result in results]
    pairs = zip(answers, dialogs, strict=True)
    return sum(answer == dialog[1]["content"] for answer, dialog in pairs) / len(dialogs)


if __name__ == "__main__":
    run(main)
