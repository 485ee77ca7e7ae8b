"""A small training run and what is read from its folder."""

from pathlib import Path
from typing import Any

import torch
from fixtures import SENTENCES, tiny_args

from llama import Tokenizer
from llama.checkpoint.loading import load
from llama.training import TrainConfig, text_document
from llama.training.documents import Document
from llama.training.metrics import read_metrics
from llama.training.state import STATES

CONFIG = TrainConfig(
    steps=30,
    batch_size=4,
    seq_len=32,
    learning_rate=3e-3,
    warmup_steps=1,
    dtype=torch.float32,
    eval_every=10,
    samples=0,
)


def documents(tokenizer: Tokenizer) -> list[Document]:
    return [text_document(tokenizer, text) for text in SENTENCES * 4]


def args(tokenizer: Tokenizer, **changes: Any) -> Any:
    return tiny_args(**{"vocab_size": tokenizer.n_words, "max_seq_len": 64, **changes})


def metrics(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / STATES / "metrics.jsonl")


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = load(folder, device="cpu", dtype=torch.float32)
    return model.state_dict()
