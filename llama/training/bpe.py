"""Training a byte-pair tokenizer of Llama 3's kind."""

from collections.abc import Iterable
from pathlib import Path

from llama.tokenizer_json import BYTES
from llama.vocabulary import LLAMA3_PATTERN, rank_lines


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
    ranks = {
        bytes(BYTES[character] for character in token): rank
        for token, rank in tokenizer.get_vocab().items()
    }
    Path(path).write_bytes(rank_lines(ranks))
