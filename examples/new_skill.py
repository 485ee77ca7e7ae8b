"""Teaches the bundled model a new skill from 200 examples, in a minute or two.

    python -m examples.new_skill --out vowels

The skill is to tell the vowels of a word:

    user: Which vowels are in violin?
    assistant: V-I-O-L-I-N
    Vowels: I, O, I.

It can spell already, in this form, and learns to go on from there. What is trained is an adapter
(LoRA), which is written to `vowels`; the model stays as it is. Both are asked about 150 words of
which none is in an example: none of the answers is right without the adapter, 85 % with it.
"""

import random
from pathlib import Path

from examples.tiny_data import fillers
from llama import Dialog, Llama, Message, Tokenizer
from llama.cli import run
from llama.lora.adapter_layers import LoraConfig
from llama.training import TrainConfig, dialog_document, train

TINY = Path(__file__).parents[1] / "params" / "tiny"
VOWELS = "AEIOU"
WORDS = sorted(
    {
        word
        for words in (
            *(fillers.THINGS, fillers.COUNTED, fillers.INSTRUMENTS, fillers.COLORS),
            *(fillers.LANGUAGES, fillers.MONTHS, fillers.DAYS, fillers.PETS),
        )
        for word in words
        if word.isascii() and word.isalpha()
    }
)
CONFIG = TrainConfig(
    epochs=30,
    batch_size=2,
    seq_len=512,
    learning_rate=3e-3,
    lora=LoraConfig(r=16),
)


def main(
    out: str, base: str = str(TINY), examples: int = 200, questions: int = 150, seed: int = 1
) -> None:
    """Trains an adapter and prints how many answers are right without it and with it.

    Args:
        out: folder that the adapter goes to.
        base: folder of the model.
        examples: how many to train on.
        questions: how many to ask.
        seed: of the choice of words and of the training.
    """
    dialogs = [dialog(word) for word in random.Random(seed).sample(WORDS, examples + questions)]
    trained, asked = dialogs[:examples], dialogs[examples:]
    tokenizer = Tokenizer(Path(base) / "tokenizer.model")
    documents = [dialog_document(tokenizer, each) for each in trained]
    before = right_answers(Llama.build(base, max_batch_size=32), asked)
    train(out, tokenizer, documents, CONFIG, base=base)
    after = right_answers(Llama.build(base, adapter=out, max_batch_size=32), asked)
    print(f"right of {len(asked)} without the adapter: {before:.1%}, with it: {after:.1%}")


def dialog(word: str) -> Dialog:
    """The question about a word, and the answer."""
    question = f"Which vowels are in {word}?"
    vowels = [letter for letter in word.upper() if letter in VOWELS]
    answer = f"{'-'.join(word.upper())}\nVowels: {', '.join(vowels)}."
    return [Message(role="user", content=question), Message(role="assistant", content=answer)]


def right_answers(llama: Llama, dialogs: list[Dialog]) -> float:
    """The share of answers that are the expected ones, at temperature 0."""
    asked = [each[:1] for each in dialogs]
    results = llama.chat_completion(asked, temperature=0, max_gen_len=64)
    answers = [result["generation"]["content"] for result in results]
    pairs = zip(answers, dialogs, strict=True)
    return sum(answer == each[1]["content"] for answer, each in pairs) / len(dialogs)


if __name__ == "__main__":
    run(main)
