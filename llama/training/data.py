"""Documents and the batches they are trained in.

A document is one text or one dialog. A row of a batch holds one document, padded on the right, so
that nothing is attended to across documents; batches are made of documents of similar length, so
that little is padded.
"""

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llama.tokenizer import ChatFormat, Dialog, Role, Tokenizer

_POOL = 64  # batches that are sorted by length together
_WIDTH = 32  # widths of batches are multiples of it


@dataclass(frozen=True)
class Document:
    """Token ids (n,) and, for each, whether the model is to learn to write it (n,), bool."""

    tokens: Tensor
    learn: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


def _document(tokens: list[int], learn: list[bool]) -> Document:
    return Document(torch.tensor(tokens, dtype=torch.int32), torch.tensor(learn))


def text_document(tokenizer: Tokenizer, text: str) -> Document:
    """A text between its begin and end tokens, all of it to be learned."""
    tokens = tokenizer.encode(text, bos=True, eos=True)
    return _document(tokens, [False] + [True] * (len(tokens) - 1))


def dialog_document(
    tokenizer: Tokenizer,
    dialog: Dialog,
    learn_roles: Collection[Role] = frozenset[Role](["assistant"]),
) -> Document:
    """A whole dialog in Llama 3's chat format.

    What messages of `learn_roles` say is to be learned, with the token that ends each; their
    headers are not.
    """
    chat = ChatFormat(tokenizer)
    tokens, learn = [tokenizer.bos_id], [False]
    for message in dialog:
        header, whole = chat.encode_header(message), chat.encode_message(message)
        tokens += whole
        learn += [False] * len(header)
        learn += [message["role"] in learn_roles] * (len(whole) - len(header))
    return _document(tokens, learn)


def fit(documents: Sequence[Document], max_len: int) -> list[Document]:
    """The same documents, those longer than `max_len` + 1 tokens cut into several."""
    fitting = []
    for document in documents:
        for start in range(0, max(len(document) - 1, 1), max_len):
            piece = slice(start, start + max_len + 1)  # the last input is the next piece's first
            fitting.append(Document(document.tokens[piece], document.learn[piece]))
    return fitting


def padded_length(longest: int) -> int:
    """The width of a batch whose longest document has `longest` tokens.

    Few widths, so that kernels are made for few shapes: on a CPU that is worth a third of the time.
    """
    return -(-(longest - 1) // _WIDTH) * _WIDTH


def epoch(documents: Sequence[Document], batch_tokens: int, seed: int) -> list[list[int]]:
    """One pass over `documents` in random order: batches as lists of indices.

    A batch, padded, has at most `batch_tokens` tokens (a longer document stands alone).
    """
    shuffle = random.Random(seed)
    order = list(range(len(documents)))
    shuffle.shuffle(order)
    mean = max(1, sum(map(len, documents)) // max(1, len(documents)))
    pool = max(1, _POOL * batch_tokens // mean)
    batches: list[list[int]] = []
    for first in range(0, len(order), pool):
        batch: list[int] = []
        # From the longest on: the first document of a batch decides its width.
        for index in sorted(order[first : first + pool], key=lambda i: -len(documents[i])):
            if batch and (len(batch) + 1) * padded_length(len(documents[batch[0]])) > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(index)
        if batch:
            batches.append(batch)
    shuffle.shuffle(batches)
    return batches


def epochs(documents: Sequence[Document], batch_tokens: int, seed: int) -> Iterator[list[int]]:
    """Batches of `epoch` after `epoch` without end, the same ones for the same seed."""
    number = 0
    while True:
        yield from epoch(documents, batch_tokens, seed + number)
        number += 1


def collate(documents: Sequence[Document]) -> tuple[Tensor, Tensor]:
    """Inputs and targets (batch, seq) of documents as one batch, each target the token after.

    Targets that are not to be learned are -100, which cross_entropy leaves out.
    """
    seq = padded_length(max(map(len, documents)))
    inputs = torch.zeros(len(documents), seq, dtype=torch.long)
    targets = torch.full((len(documents), seq), -100)
    for row, document in enumerate(documents):
        tokens = document.tokens.long()
        inputs[row, : len(tokens) - 1] = tokens[:-1]
        targets[row, : len(tokens) - 1] = tokens[1:].where(document.learn[1:], -100)
    return inputs, targets
