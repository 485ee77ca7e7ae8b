"""Trains the bundled model, from text to the finished folder.

    python -m examples.train_tiny --data DATA --out tiny-2

`DATA` is a folder with `tinystories.txt` (stories separated by a line `<|endoftext|>`),
`selfdialogue.jsonl` (`{"turns": [str, ...]}`) and `math_spelling.jsonl` (`{"cat", "prompt",
"response"}`). It learns from about 52 million tokens: an hour and a half on two cores that multiply
bfloat16 (10,000 tokens a second), four on two that do not (3,500). Runs and their states lie in
`tiny-2-run`: stopped with Ctrl-C, the same command goes on there.

It has four stages, each one pass over documents that are made beforehand, in random order. First
texts: stories, small talk of two people, and facts that are told again and again, from which it
learns to look up what was said of whom. Then dialogs: the stories as answers to requests for them,
and those of `tiny_skills`, hardly any of them twice. Two shorter stages practise what is weak then;
the rate rises again for each (Loshchilov and Hutter, 2017). Blocks' matrices are trained by Muon,
which gets about as far in half of AdamW's steps here.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from examples.tiny_skills import SMALL_TALK, Skills, exam, made_up_words, score
from examples.tiny_skills.chats import chat, conversation, count, tell
from llama import Dialog, Llama, Message, Tokenizer
from llama.checkpoint.convert import convert, new_folder
from llama.cli import run
from llama.model import ModelArgs
from llama.tokenizer import Role
from llama.training import (
    Document,
    Documents,
    TrainConfig,
    dialog_document,
    text_document,
    train,
    train_tokenizer,
)

T = TypeVar("T")

HELD_OUT_EVERY = 20  # each 20th story, dialog and word is kept for measuring

SHAPE = ModelArgs(
    dim=256,
    n_layers=6,
    n_heads=8,
    n_kv_heads=4,
    vocab_size=2048,  # 256 of them special
    multiple_of=128,
    ffn_dim_multiplier=0.9,
    rope_theta=500000.0,
    max_seq_len=1024,
)
# Looking up begins suddenly, after about a thousand steps: small batches make more of them.
FIRST = TrainConfig(
    batch_size=2,
    seq_len=1024,
    optimizer="muon",
    learning_rate=4e-3,
    final_learning_rate=0.3,
    save_every=500,
)
SECOND = replace(
    FIRST, batch_size=4, learning_rate=3e-3, final_learning_rate=0, eval_every=1000, seed=2
)
THIRD = replace(SECOND, learning_rate=2e-3, eval_every=500, seed=3)
FOURTH = replace(THIRD, seed=4)


class Stage(NamedTuple):
    """What is trained on in one go.

    millions  of tokens of each kind
    passes    over the stories: of nine in all, the last three unlearned what is held out
    texts     whether stories are texts by themselves, and not answers
    talk      the share of the small-talk dialogs
    skills    settings of `Skills` that are new, also for the stages after it
    names     whether names are made up, also after it, of all tokens of words with a capital
    """

    config: TrainConfig
    millions: Mapping[str, float]
    passes: int = 1
    texts: bool = False
    talk: float = 0.0
    skills: Mapping[str, Any] = MappingProxyType({})
    names: bool = False


STAGES = {
    "first": Stage(FIRST, {"retold": 4}, passes=3, texts=True, talk=0.1),
    "second": Stage(
        SECOND,
        {
            "retold": 0.7,
            "facts": 8,
            "sums": 3.3,
            "style": 1.2,
            "names": 1.2,
            "tools": 2.5,
            "spelling": 2.5,
            "counting": 0.3,
            "chats": 0.5,
        },
        passes=3,
        skills={"strange": 0.3},
    ),
    # What is weak by then: facts among many others, questions for what is not there, differences.
    "third": Stage(
        THIRD,
        {
            "facts": 1,
            "many facts": 4,
            "sums": 1.8,
            "style": 0.5,
            "names": 0.5,
            "tools": 0.5,
            "spelling": 0.5,
            "counting": 0.1,
            "chats": 0.2,
        },
        skills={
            "shares": {"known": 9, "unknown": 8, "about": 3},
            "operators": "+----*",
        },
    ),
    # Then: names that were never heard.
    "fourth": Stage(
        FOURTH,
        {
            "facts": 1,
            "many facts": 5.5,
            "sums": 1,
            "style": 0.4,
            "names": 0.5,
            "tools": 0.4,
            "spelling": 0.7,
            "counting": 0.1,
            "chats": 0.2,
        },
        skills={
            "strange": 0.6,
            "shares": {"known": 10, "unknown": 7, "about": 3},
        },
        names=True,
    ),
}


def main(data: str, out: str, seed: int = 1, share: float = 1.0) -> None:
    """Trains on the files in the folder `data` and writes the checkpoint folder `out`.

    Args:
        data: folder of the texts.
        out: folder that is made for the finished model.
        seed: of the documents and the first weights.
        share: of all documents, to try something out.
    """
    source, target = Path(data), new_folder(out)
    stories = read_stories(source / "tinystories.txt")
    dialogs = read_dialogs(source / "selfdialogue.jsonl")
    spelling = read_spelling(source / "math_spelling.jsonl")
    words = known_words(stories, dialogs, spelling)
    random.Random(seed).shuffle(words)

    folder = Path(f"{out}-run")
    folder.mkdir(parents=True, exist_ok=True)
    skills = Skills(random.Random(seed), kept(words), SMALL_TALK, kept(stories))
    tokenizer_path = folder / "tokenizer.model"
    if not tokenizer_path.exists():
        texts = kept(stories) * 3 + [turn for dialog in kept(dialogs) for turn in dialog]
        for make in (skills.facts, skills.style, skills.names, skills.tools, skills.spelling):
            texts += [message["content"] for _ in range(2000) for message in make()]
        train_tokenizer(texts, SHAPE.vocab_size - 256, tokenizer_path, digits=True)
    tokenizer = Tokenizer(tokenizer_path)

    rng = random.Random(seed)
    known = kept(words)
    known += made_up_words(rng, tokenizer, known, held_out(words), 8)
    names = made_up_words(random.Random(seed), tokenizer, capital_words(kept(stories)), [], 8)
    measured = [text_document(tokenizer, story) for story in held_out(stories)]
    base: Path | None = None
    for name, stage in STAGES.items():
        if stage.names:
            known += names
        skills = replace(skills, rng=rng, words=known, **stage.skills)
        documents = Documents.of(documents_of(stage, tokenizer, skills, kept(dialogs), share))
        total, in_loss = documents.lengths.sum(), documents.num_loss_tokens.sum()
        print(f"{name}: {len(documents):,} documents, {total:,} tokens, {in_loss:,} in the loss")
        held = measured if base else ()  # the first is to be taken as it ends
        path = folder / name
        train(path, tokenizer, documents, stage.config, args=SHAPE, base=base, held_out=held)
        base = path

    convert(str(base), str(target), dtype="bfloat16")

    rng = random.Random(seed + 1)
    unseen = Skills(rng, held_out(words), SMALL_TALK, held_out(stories), held_out=True)
    llama = Llama.build(target, max_batch_size=32)
    for name, right in score(llama, exam(unseen, 1000)).items():
        print(f"{name}: {right:.1%}")


def documents_of(
    stage: Stage, tokenizer: Tokenizer, skills: Skills, dialogs: list[list[str]], share: float
) -> Iterator[Document]:
    """What a stage trains on, in no order."""
    rng = skills.rng
    for _ in range(stage.passes):
        for story in skills.stories:
            if rng.random() < share:
                if stage.texts:
                    yield text_document(tokenizer, story)
                else:
                    yield dialog_document(tokenizer, conversation(rng, [tell(rng, story)]))
    for turns in dialogs if stage.talk else []:
        if rng.random() < stage.talk * share:
            yield talked(tokenizer, turns)
    makers: dict[str, Callable[[], Dialog]] = {
        "facts": skills.facts,
        "many facts": lambda: skills.asked(rng.choice((2, 4, 8))).dialog,
        "sums": skills.sums,
        "style": skills.style,
        "names": skills.names,
        "tools": skills.tools,
        "spelling": skills.spelling,
        "counting": lambda: conversation(rng, [count(rng, rng.choice(skills.words))]),
        "chats": lambda: chat(skills),
    }

    def document(kind: str) -> Document:
        if kind == "retold":
            return text_document(tokenizer, skills.retold())
        return dialog_document(tokenizer, makers[kind]())

    for kind, millions in stage.millions.items():
        yield from up_to(millions * share, partial(document, kind))


def up_to(millions: float, make: Callable[[], Document]) -> Iterator[Document]:
    """Documents of so many million tokens."""
    left = millions * 1e6
    while left > 0:
        document = make()
        left -= len(document)
        yield document


def talked(tokenizer: Tokenizer, turns: list[str]) -> Document:
    """Small talk of two people, both of whom are learned."""
    dialog = []
    for i, turn in enumerate(turns):
        role: Role = "assistant" if i % 2 else "user"
        dialog.append(Message(role=role, content=turn))
    return dialog_document(tokenizer, dialog, ("user", "assistant"))


def read_stories(path: Path) -> list[str]:
    """The stories of a file in which a line <|endoftext|> separates them."""
    parts = path.read_text(encoding="utf-8").split("<|endoftext|>")
    return [part.strip() for part in parts if part.strip()]


def read_dialogs(path: Path) -> list[list[str]]:
    """Turns of dialogs, of those that are mostly written with capitals."""
    dialogs = [json.loads(line)["turns"] for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        turns for turns in dialogs if sum(turn[:1].isupper() for turn in turns) > 0.8 * len(turns)
    ]


def read_spelling(path: Path) -> list[tuple[str, str]]:
    """Questions for the spelling of a word, and the answers."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        (line["prompt"], line["response"].replace(" 1 times.", " 1 time."))
        for line in lines
        if line["cat"] == "generated-spelling"
    ]


def known_words(
    stories: list[str], dialogs: list[list[str]], spelling: list[tuple[str, str]]
) -> list[str]:
    """Words worth spelling: those that occur some times in the text or once in the questions."""
    text = Counter(re.findall(r"\b[a-z]{2,12}\b", "\n".join(stories)))
    for turns in dialogs:
        text.update(re.findall(r"\b[a-z]{2,12}\b", "\n".join(turns)))
    asked = re.findall(r"\b[a-z]{2,12}\b(?= spelled|\?$|\.$)", "\n".join(p for p, _ in spelling))
    return sorted({word for word, times in text.items() if times >= 5} | set(asked))


def capital_words(stories: list[str]) -> list[str]:
    """Words that begin with a capital letter and occur some times: names, and beginnings."""
    found = Counter(re.findall(r"\b[A-Z][a-z]+\b", "\n".join(stories)))
    return sorted(word for word, times in found.items() if times >= 5)


def kept(items: list[T]) -> list[T]:
    """What is trained on."""
    return [item for i, item in enumerate(items) if i % HELD_OUT_EVERY]


def held_out(items: list[T]) -> list[T]:
    """What is kept for measuring."""
    return items[::HELD_OUT_EVERY]


if __name__ == "__main__":
    run(main)
