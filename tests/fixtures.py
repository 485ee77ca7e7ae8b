"""Small tokenizer files, made on the fly: tests download nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

MERGES = (
    *(b"th", b"he", b"the", b" the", b" a", b" t", b"er", b"or", b"in", b"ing", b"ll", b"lo"),
    *(b"hello", b" w", b" wor", b" world", b"12", b"123", b"  ", b"    ", b"\n\n", b"\t\t"),
    *(
        b"use",
        b"user",
        b"ass",
        b"ist",
        b"assist",
        b"ant",
        b"assistant",
        b"\xc3\xa9",
        b"\xf0\x9f",
        b"St",
    ),
)

SENTENCES = (
    "Once upon a time there was a little girl named Lily.",
    "She liked to play with her dog in the park, and the dog liked to play with her.",
    'One day they saw a big red ball. "Whose ball is it?" asked Lily.',
    "The dog said nothing. He ran to the ball and gave it to her 123 times.",
    "They played until the sun went down, and then they went home together.",
    "[INST] <<SYS>> You are a helpful assistant. <</SYS>> Hello! [/INST]",
)


def write_tiktoken(path: Path, merges: Sequence[bytes] = MERGES) -> Path:
    """A byte-level ranks file: the 256 bytes, then `merges`. Returns `path`."""
    tokens = [bytes([byte]) for byte in range(256)] + list(merges)
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_sentencepiece(path: Path, vocab_size: int = 400, **settings: object) -> Path:
    """A SentencePiece model of 310 pieces or more, with Llama 2's settings unless others are given.

    Returns `path`.
    """
    model = io.BytesIO()
    llama2 = {
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": -1,
        "add_dummy_prefix": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 10),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        minloglevel=2,
        **(llama2 | settings),
    )
    path.write_bytes(model.getvalue())
    return path
