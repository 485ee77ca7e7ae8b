"""Trains the bundled model, from text to the finished folder.

    python -m examples.train_tiny --data DATA --out tiny-3

`DATA` is a folder with `tinystories.txt` and `tinystories2.txt` (stories separated by a line
`<|endoftext|>`), `selfdialogue.jsonl` (`{"turns": [str, ...]}`) and `math_spelling.jsonl` (`{"cat",
"prompt", "response"}`). It takes just under three hours on two cores that multiply bfloat16 (11,000
tokens a second). Runs and their states lie in `tiny-3-run`: stopped with Ctrl-C, the same command
goes on there.

It has three stages, each one pass over documents that are made beforehand, in random order. First
texts: stories, small talk of two people, and facts that are told again and again, from which it
learns to look up what was said of whom. Then dialogs: those of `tiny_data`, hardly any of them
twice, and stories as answers to requests for them. Third dialogs again, most of them of what the
second stage had not learned well: whose value is whose, and which sentence a question is about.
Blocks' matrices are trained by Muon, which gets about as far in half of AdamW's steps here.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from examples import tiny_questions as questions
from examples.tiny_data.fillers import made_up_words
from examples.tiny_data.mixture import MAKERS, Made
from examples.tiny_data.tool_prompts import ToolDialog
from examples.tiny_data.turns import Exhausted, Source
from llama import Message, Tokenizer
from llama.checkpoint.convert import convert, new_folder
from llama.cli import run
from llama.dialog import Role, write_dialog
from llama.model import ModelArgs
from llama.training import (
    Document,
    Documents,
    TrainConfig,
    dialog_document,
    text_document,
    train,
    train_tokenizer,
)

HELD_OUT_EVERY = 20  # of the first stories

SHAPE = ModelArgs(
    dim=256,
    n_layers=9,
    n_heads=8,
    n_kv_heads=4,
    vocab_size=2048,  # 256 of them special
    multiple_of=128,
    ffn_dim_multiplier=0.9,
    rope_theta=500000.0,
    max_seq_len=1024,
)


class Stage(NamedTuple):
    """What is trained on in one go.

    passes   over the stories as texts
    talk     the share of the small-talk dialogs, both sides of which are learned
    millions of tokens of each kind in `MAKERS`
    """

    config: TrainConfig
    passes: int
    talk: float
    millions: Mapping[str, float]


# Looking up begins suddenly, after about a thousand steps: small batches make more of them.
TEXTS = TrainConfig(
    batch_size=2,
    seq_len=1024,
    optimizer="muon",
    learning_rate=4e-3,
    final_learning_rate=0.3,
    save_every=500,
)
DIALOGS = replace(
    TEXTS, batch_size=4, learning_rate=3e-3, final_learning_rate=0, eval_every=1000, seed=2
)
STAGES = {
    "texts": Stage(
        TEXTS,
        2,
        0.05,
        {
            "sums as texts": 2.5,
            "letters as texts": 2,
            "looked up": 2,
            "copied": 1.5,
            "told": 1.5,
        },
    ),
    "dialogs": Stage(
        DIALOGS,
        2,
        0.03,
        {
            "facts": 14,
            "tools": 6.5,
            "stories": 6,
            "sums": 6,
            "letters": 5,
            "style": 4,
            "remembered": 4,
            "talk": 2.5,
            "mixed": 3,
            "personas": 1.5,
        },
    ),
    "weak": Stage(
        replace(DIALOGS, learning_rate=2e-3, seed=3),
        1,
        0.01,
        {
            "free": 8.5,
            "alike": 3,
            "facts": 3.5,
            "told before": 2.5,
            "remembered": 1.5,
            "tools": 4.5,
            "style": 4,
            "stories": 3,
            "sums": 3,
            "letters": 1.5,
            "mixed": 0.7,
            "talk": 0.3,
            "personas": 0.3,
        },
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
    old_stories = read_stories(source / "tinystories.txt")
    held_out = old_stories[::HELD_OUT_EVERY]
    stories = [s for i, s in enumerate(old_stories) if i % HELD_OUT_EVERY]
    stories += read_stories(source / "tinystories2.txt")
    dialogs = read_dialogs(source / "selfdialogue.jsonl")
    words = known_words(stories, dialogs, source / "math_spelling.jsonl")
    asked = asked_words()
    words = [word for word in words if word not in asked]

    folder = Path(f"{out}-run")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_path = folder / "tokenizer.model"
    if not tokenizer_path.exists():
        texts = stories * 2 + [turn for dialog in dialogs[::5] for turn in dialog]
        train_tokenizer(texts + tool_texts(), SHAPE.vocab_size - 256, tokenizer_path, digits=True)
    tokenizer = Tokenizer(tokenizer_path)

    measured = [text_document(tokenizer, story) for story in held_out]
    base: Path | None = None
    for number, (name, stage) in enumerate(STAGES.items()):
        rng = random.Random(seed + number)
        made_up = made_up_words(rng, tokenizer, words, {word for word in asked if len(word) > 3}, 8)
        making = Source(rng, words + made_up, stories)
        documents = Documents.of(documents_of(stage, tokenizer, making, dialogs, share))
        total, in_loss = documents.lengths.sum(), documents.num_loss_tokens.sum()
        print(f"{name}: {len(documents):,} documents, {total:,} tokens, {in_loss:,} in the loss")
        path = folder / name
        train(path, tokenizer, documents, stage.config, args=SHAPE, base=base, held_out=measured)
        base = path
    convert(str(base), str(target), dtype="bfloat16")


def documents_of(
    stage: Stage, tokenizer: Tokenizer, source: Source, dialogs: list[list[str]], share: float
) -> Iterator[Document]:
    """What a stage trains on, in no order."""
    rng = source.rng
    for _ in range(stage.passes):
        for story in source.stories:
            if rng.random() < share:
                yield text_document(tokenizer, story)
    for turns in dialogs if stage.talk else []:
        if rng.random() < stage.talk * share:
            yield talked(tokenizer, turns)
    for kind, millions in stage.millions.items():
        left = millions * 1e6 * share
        while left > 0:
            document = document_of(tokenizer, MAKERS[kind], source)
            left -= len(document)
            yield document


def document_of(tokenizer: Tokenizer, make: Callable[[Source], Made], source: Source) -> Document:
    """A text or a dialog that fits the context."""
    while True:
        try:
            made = make(source)
        except Exhausted:
            continue
        if isinstance(made, str):
            document = text_document(tokenizer, made)
        elif isinstance(made, ToolDialog):
            document = dialog_document(tokenizer, made.messages, tools=made.tools)
        else:
            document = dialog_document(tokenizer, made)
        if len(document) <= SHAPE.max_seq_len:
            return document


def talked(tokenizer: Tokenizer, turns: list[str]) -> Document:
    """Small talk of two people, both of whom are learned."""
    dialog = []
    for i, turn in enumerate(turns):
        role: Role = "assistant" if i % 2 else "user"
        dialog.append(Message(role=role, content=turn))
    return dialog_document(tokenizer, dialog, ("user", "assistant"))


def asked_words() -> set[str]:
    """All words of the questions for spelling and letters: no training teaches their letters."""
    found = set[str]()
    for file in questions.FOLDER.glob("*.jsonl"):
        for question in questions.read_questions(file):
            if question["skill"] in ("spelling", "counting"):
                text = " ".join(message["content"] for message in question["dialog"])
                found.update(re.findall("[a-z]+", text.lower()))
    return found


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


def known_words(stories: list[str], dialogs: list[list[str]], spelling: Path) -> list[str]:
    """Words worth spelling: those that occur some times in the text or once in the questions."""
    text = Counter(re.findall(r"\b[a-z]{2,12}\b", "\n".join(stories)))
    for turns in dialogs:
        text.update(re.findall(r"\b[a-z]{2,12}\b", "\n".join(turns)))
    lines = [json.loads(line) for line in spelling.read_text(encoding="utf-8").splitlines()]
    asked = re.findall(
        r"\b[a-z]{2,12}\b(?= spelled|\?$|\.$)",
        "\n".join(line["prompt"] for line in lines if line["cat"] == "generated-spelling"),
    )
    return sorted({word for word, times in text.items() if times >= 5} | set(asked))


def tool_texts() -> list[str]:
    """Prompts with functions and their calls, so that the tokenizer has tokens for their JSON."""
    dialog: list[Message] = [{"role": "user", "content": "What is 23 * 17?"}]
    texts = []
    for kind in ("string", "number", "integer", "boolean"):
        parameter = {"type": kind, "description": "Name of the city"}
        parameters = {"type": "object", "properties": {"city": parameter}, "required": ["city"]}
        function = {"name": "get_weather", "description": "Tells", "parameters": parameters}
        tools = [{"type": "function", "function": function}]
        written = write_dialog(dialog, tools)  # type: ignore[arg-type]
        texts += [text.content for _, text in written]
        texts += [json.dumps(tools[0]), json.dumps({"name": "get", "parameters": {"city": "x"}})]
        texts += [json.dumps({"output": "x", "result": "y", "error": "z"})]
    return texts * 500


if __name__ == "__main__":
    run(main)
