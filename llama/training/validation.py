"""How good a model is while it trains: its loss on validation documents, and samples to read."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from llama import distributed
from llama.engine.engine import Engine
from llama.engine.request import Sequence as Prompt
from llama.engine.sampling import SamplingParams
from llama.tokenizer import Tokenizer
from llama.training.documents import Document
from llama.training.packing import PackedRows
from llama.training.trainable_model import TrainableModel

_PROMPT_TOKENS = 8  # of a validation text that a sample continues
_SAMPLE_TOKENS = 48


class Evaluation(NamedTuple):
    """On validation documents: nats per loss token, and bits per byte of their text."""

    loss: float
    bits_per_byte: float


def evaluate(
    trainable: TrainableModel, tokenizer: Tokenizer, rows: PackedRows, micro_batch_size: int
) -> Evaluation:
    """The loss on all documents of `rows`, a share of them on each process."""
    text_bytes = torch.tensor([_text_bytes(tokenizer, i) for i in range(tokenizer.n_words)])
    text_bytes = text_bytes.to(trainable.device)
    epoch = list(rows.epoch(0))
    epoch += [[] for _ in range(-len(epoch) % distributed.data_parallel_size())]
    sums = torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        for batch in rows.local_batches(epoch, micro_batch_size):
            _, losses, targets = trainable.losses(batch)
            sums += torch.stack([x.cpu() for x in loss_sums(losses, targets, text_bytes)])
    if distributed.data_parallel_size() > 1:
        sums = sums.to(trainable.device, torch.float32)
        dist.all_reduce(sums, group=distributed.data_parallel_group())
    nats, tokens, text_nats, size = sums.tolist()
    return Evaluation(nats / tokens, text_nats / math.log(2) / max(size, 1))


def loss_sums(losses: Tensor, targets: Tensor, text_bytes: Tensor) -> tuple[Tensor, ...]:
    """Sums over targets: nats, loss tokens, nats of those that are text, and its bytes.

    `losses` and `targets` are (n,), `text_bytes` (vocab,), on one device.
    """
    counted = targets >= 0
    sizes = text_bytes[targets.clamp(min=0)] * counted
    return losses.sum(), counted.sum(), (losses * (sizes > 0)).sum(), sizes.sum()


def _text_bytes(tokenizer: Tokenizer, token: int) -> int:
    """How many bytes of text a token stands for; 0 for special tokens."""
    if token in tokenizer.special_tokens.values():
        return 0
    piece = tokenizer.vocabulary.piece(token)
    return len(piece.encode() if isinstance(piece, str) else piece)


def samples(
    trainable: TrainableModel, tokenizer: Tokenizer, documents: Sequence[Document]
) -> list[tuple[str, str]]:
    """Beginnings of the first documents, and the model's continuation of each."""
    sequences = []
    for document in itertools.islice(documents, trainable.config.samples):
        loss_at = document.loss_mask.nonzero().squeeze(1)
        first = int(loss_at[0]) if len(loss_at) else len(document)
        length = max(first, min(_PROMPT_TOKENS, len(document) // 2), 1)
        if length + _SAMPLE_TOKENS <= trainable.model.params.max_seq_len:
            prompt = document.tokens[:length].tolist()
            params = SamplingParams(temperature=0.6, top_p=0.9, seed=trainable.config.seed)
            sequences.append(Prompt(prompt, max_gen_len=_SAMPLE_TOKENS, params=params))
    if not sequences:
        return []
    longest = max(len(s.prompt) for s in sequences) + _SAMPLE_TOKENS
    with trainable.generating():
        # A CUDA graph would capture FSDP's collectives, and is not worth it for 48 tokens.
        engine = Engine(trainable.model, tokenizer, len(sequences), longest, cuda_graphs=False)
        engine.add(*sequences)
        while not engine.idle:
            engine.step()
    if broken := [s.error for s in sequences if s.error is not None]:
        raise broken[0]
    return [(tokenizer.decode(s.prompt), s.text) for s in sequences]
