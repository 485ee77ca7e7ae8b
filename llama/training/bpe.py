"""Training a byte-pair tokenizer of Llama 3's kind."""

import base64
from collections.abc import Iterable
from pathlib import Path

from llama.vocabulary import LLAMA3_PATTERN


def train_tokenizer(texts: Iterable[str], n_ranks: int, path: str | Path) -> None:
    """Writes a file of `n_ranks` byte-pair ranks in tiktoken's format, learned from `texts`.

    The 256 single bytes come first. Learning is done by Hugging Face's `tokenizers` package, with
    Llama 3's way of splitting text. Raises ValueError for fewer ranks than bytes, or for texts that
    do not have that many pairs.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    if n_ranks < 256:
        raise ValueError(f"n_ranks={n_ranks}: every one of the 256 bytes needs a rank")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=n_ranks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != n_ranks:
        raise ValueError(
            f"the texts give {tokenizer.get_vocab_size()} ranks, not {n_ranks}; use more text"
        )
    byte_of = _byte_of_character()
    lines = [
        base64.b64encode(bytes(byte_of[character] for character in token)) + b" %d\n" % rank
        for token, rank in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    ]
    Path(path).write_bytes(b"".join(lines))


def _byte_of_character() -> dict[str, int]:
    """The byte for which each character stands in a byte-level vocabulary.

    GPT-2's table: a printable byte is its own Latin-1 character, the n-th other one U+0100 + n.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    table = {chr(byte): byte for byte in own}
    return table | {chr(0x100 + n): byte for n, byte in enumerate(others)}
