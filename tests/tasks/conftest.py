"""A random model whose context holds the prompts of tasks, in its two kinds of tokenizers."""

from pathlib import Path

import pytest
import torch
from fixtures import tiny_args, write_sentencepiece

from llama import Llama, Tokenizer, Transformer
from llama.checkpoint.saving import save_model


def write_model(folder: Path, tokenizer: Tokenizer, seed: int = 0) -> Path:
    args = tiny_args(vocab_size=tokenizer.n_words, max_seq_len=1024)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Transformer(args)
    for weight in model.parameters():
        weight.data *= 6
    save_model(model, folder, tokenizer.model_path, torch.float32)
    return folder


@pytest.fixture(scope="session")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("task_model"), tokenizer)


@pytest.fixture(scope="session")
def llama(folder: Path) -> Llama:
    return Llama.build(folder, max_batch_size=3, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def llama2(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    """The same with Llama 2's kind of tokenizer, and so its chat format."""
    model = tmp_path_factory.mktemp("task_model2")
    tokenizer = Tokenizer(write_sentencepiece(model / "written.model"))
    write_model(model, tokenizer)
    return Llama.build(model, max_batch_size=3, device="cpu", dtype="float32")
