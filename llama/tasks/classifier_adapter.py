"""A classifier trained on labelled examples by LoRA: an adapter that makes the right label likely.

    train_adapter("mood", "params/tiny", examples, ["positive", "negative"])
    llama = Llama.build("params/tiny", adapter="mood")
    classify(llama, texts, **adapter_prompt("mood"))

The prompt is that of `classify`. It lists the labels in an order that has to stay, so a file
beside the adapter keeps it. Training is `llama.training.train`, which resumes after Ctrl-C as
`llama train` does.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import torch

from llama import console
from llama.checkpoint.opening import open_checkpoint
from llama.errors import ContextLengthError, InputError, MissingFileError
from llama.lora.adapter_layers import LoraConfig
from llama.storage.files import expand, read_json, write_json
from llama.storage.pulled import open_folder
from llama.tasks.label_prompts import LabelPrompt, checked_examples, checked_labels
from llama.tokenizer import ChatFormat
from llama.training import Document, TrainConfig, train

_PROMPT_FILE = "classifier.json"
_DEFAULTS = TrainConfig(epochs=3, batch_size=1, lora=LoraConfig())


class AdapterPrompt(TypedDict):
    """The settings of `classify` for which an adapter was trained."""

    labels: list[str]
    instruction: str | None
    chat: bool
    calibrate: bool


def train_adapter(
    out: str | Path,
    base: str | Path,
    examples: Iterable[tuple[str, str]],
    labels: Iterable[str],
    config: TrainConfig = _DEFAULTS,
    *,
    held_out: Iterable[tuple[str, str]] = (),
    instruction: str | None = None,
    chat: bool = True,
    device: str | None = None,
) -> None:
    """Trains an adapter of the checkpoint in the folder `base` and writes it to the folder `out`.

    `examples` and `held_out` are pairs of a text and its label; with `held_out` the best adapter on
    these is kept. The labels' tokens, with the end after them, count in the loss. Raises InputError
    as `classify` and `llama.training.train` do, and for an example that is longer than the
    sequences that are trained on.
    """
    if config.lora is None:
        raise InputError("config.lora is None: give a LoraConfig, since an adapter is trained")
    checkpoint = open_checkpoint(base)
    tokenizer = checkpoint.open_tokenizer(None)
    prompt = LabelPrompt(ChatFormat(tokenizer), labels, (), instruction, chat)
    longest = config.sequence_length(checkpoint.args)

    def documents(name: str, pairs: Iterable[tuple[str, str]]) -> list[Document]:
        made = []
        for i, (text, label) in enumerate(checked_examples(pairs, prompt.labels)):
            before, completion = prompt.encode(text, label)
            tokens = torch.tensor(before + completion, dtype=torch.int32)
            if len(tokens) > longest:
                reason = f"sequences have {longest} (seq_len); shorten it, or train on longer ones"
                raise ContextLengthError(f"{name}[{i}]", len(tokens), longest, reason)
            mask = torch.tensor([False] * len(before) + [True] * len(completion))
            made.append(Document(tokens, mask))
        return made

    trained, validation = documents("examples", examples), documents("held_out", held_out)
    if not trained:
        raise InputError("examples is empty: give at least one for each label")
    train(out, tokenizer, trained, config, base=base, held_out=validation, device=device)
    if console.is_main():
        content = {"labels": prompt.labels, "instruction": instruction, "chat": chat}
        write_json(Path(expand(out)) / _PROMPT_FILE, content)


def adapter_prompt(path: str | Path) -> AdapterPrompt:
    """What `train_adapter` has written beside an adapter: arguments of `classify`.

    Raises MissingFileError or InputError, naming the file, for another adapter and a damaged file.
    """
    folder = open_folder(path)
    if _PROMPT_FILE not in folder.names:
        raise MissingFileError(
            f"no {_PROMPT_FILE} in {folder.path}, which `llama tasks train --lora` writes: give "
            "the labels (--labels)"
        )
    where = folder.where(_PROMPT_FILE)
    content = read_json(where)
    instruction, chat = content.get("instruction"), content.get("chat")
    if not isinstance(instruction, str | None) or not isinstance(chat, bool):
        raise InputError(f"{where} is damaged: instruction is {instruction!r:.60}, chat {chat!r}")
    try:
        labels = checked_labels(content.get("labels"))
    except InputError as error:
        raise InputError(f"{where} is damaged: {error}") from error
    return {"labels": labels, "instruction": instruction, "chat": chat, "calibrate": False}
