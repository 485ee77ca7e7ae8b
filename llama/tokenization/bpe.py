"""Training a byte-pair tokenizer on text, of Llama 3's kind or of Llama 2's.

    train_tokenizer(texts, 4096 - SPECIAL_TOKENS["tiktoken"], "tokenizer.model")

tiktoken's kind, Llama 3's, starts from the 256 bytes and merges within the words of its pattern.
SentencePiece's, Llama 2's, starts from the characters of the text and falls back to bytes for
others. `Tokenizer` adds Llama 3's 256 special tokens after the ranks of the first kind; files of
the second contain <unk>, <s> and </s> themselves.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from llama import console
from llama.errors import InputError
from llama.storage.files import atomic_write
from llama.tokenization.tokenizer_json import token_bytes
from llama.tokenization.vocabulary import LLAMA3_PATTERN, rank_lines

Kind = Literal["tiktoken", "sentencepiece"]
SPECIAL_TOKENS = {"tiktoken": 256, "sentencepiece": 3}

_LLAMA2: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "character_coverage": 0.99995,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": True,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
}
# SentencePiece reserves these characters and skips sentences that contain one.
_RESERVED = re.compile("[\0\t\n\u2585]")
_WORD = re.compile(" +[^ \n]+| +$", re.MULTILINE)


def train_tokenizer(
    texts: Iterable[str],
    n_ranks: int,
    path: str | Path,
    kind: Kind = "tiktoken",
    digits: bool = False,
) -> int:
    """Trains a tokenizer of `n_ranks` ordinary tokens, replaces the file `path` by it.

    Special tokens come on top: 256 for `kind` tiktoken, 3 for sentencepiece. With `digits` no token
    has more than one digit, which helps small models with sums; sentencepiece's never have, as
    Llama 2's. The work is done by Hugging Face's `tokenizers` or by `sentencepiece`. Returns the
    number of all tokens; it is smaller where the texts have too few pairs to merge, with a notice.

    Raises ValueError for fewer ranks than single bytes and characters need, for blank texts, or
    where `tokenizers` is not installed.
    """
    if kind not in SPECIAL_TOKENS:
        raise InputError(f"kind {kind!r} is none of {', '.join(SPECIAL_TOKENS)}")
    learn = _sentencepiece if kind == "sentencepiece" else _tiktoken
    # Half of a surrogate pair, which JSON can spell, becomes U+FFFD, as in Tokenizer.encode.
    valid = (t.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for t in texts)
    found, content = learn(valid, n_ranks, digits)
    vocab_size = found + SPECIAL_TOKENS[kind]
    if found != n_ranks:
        console.notice(
            f"{path}: {vocab_size:,} tokens instead of {n_ranks + SPECIAL_TOKENS[kind]:,}; the "
            "text has no more pairs to merge"
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(content)
    return vocab_size


def _tiktoken(texts: Iterator[str], n_ranks: int, digits: bool) -> tuple[int, bytes]:
    try:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    except ImportError as error:
        raise InputError(
            f"a tokenizer of tiktoken's kind needs tokenizers ({error}): pip install tokenizers"
        ) from error

    if n_ranks < 256:
        raise InputError(
            f"n_ranks={n_ranks}: every one of the 256 bytes needs a rank, so vocab_size is at "
            f"least {256 + SPECIAL_TOKENS['tiktoken']}"
        )
    words = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}") if digits else LLAMA3_PATTERN
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=n_ranks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ranks = {token_bytes(token): rank for token, rank in tokenizer.get_vocab().items()}
    return len(ranks), rank_lines(ranks)


def _sentencepiece(texts: Iterator[str], n_ranks: int, digits: bool) -> tuple[int, bytes]:
    words = _words(texts)
    if not words:
        raise InputError("the texts are blank; give some to train the tokenizer on")
    model = io.BytesIO()
    special = SPECIAL_TOKENS["sentencepiece"]
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(f"{word}\t{count}" for word, count in words.items()),
            input_format="tsv",
            max_sentence_length=max(len(word.encode()) for word in words) + 100,
            model_writer=model,
            vocab_size=n_ranks + special,
            hard_vocab_limit=False,
            minloglevel=2,
            **_LLAMA2,
        )
    except RuntimeError as error:
        needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        if not needed:
            raise InputError(f"sentencepiece cannot train on this text: {error}") from error
        raise InputError(
            f"n_ranks={n_ranks}: the 256 bytes and each character of the text need one, so "
            f"vocab_size is at least {needed[1]}"
        ) from None
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return processor.vocab_size() - special, model.getvalue()


def _words(texts: Iterator[str]) -> Counter[str]:
    """Words and their counts, which is all that SentencePiece takes from lines of text.

    Counting here takes a third of its time and does not need the text in memory. A word keeps the
    spaces in front of it, except the one that SentencePiece adds.
    """
    words: Counter[str] = Counter()
    for text in texts:
        lines = "\n".join(f" {line}" for line in _RESERVED.split(text) if line)
        words.update(word[1:] for word in _WORD.findall(lines))
    return words
