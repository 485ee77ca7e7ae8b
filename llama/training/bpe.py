"""Learning a byte-pair tokenizer from text, of Llama 3's kind or of Llama 2's.

    llama tokenizer train --data_path stories.txt --out tokenizer.model --vocab_size 4096

tiktoken's kind, Llama 3's, begins with the 256 single bytes and merges within words, as its pattern
cuts them. SentencePiece's, Llama 2's, begins with the characters of the text and has the bytes for
all others. Both keep to what `Tokenizer` takes such a file for: after the ranks of the one come
Llama 3's 256 special tokens, and the other has <unk>, <s> and </s> in front.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from llama import console
from llama.errors import InputError
from llama.tokenization.tokenizer_json import BYTES
from llama.tokenization.vocabulary import LLAMA3_PATTERN, rank_lines
from llama.training.documents import find_sources, read_texts
from llama.training.tokenized import replacing

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
# SentencePiece keeps some characters to itself and skips what they occur in.
_RESERVED = re.compile("[\0\t\n\u2585]")
_WORD = re.compile(" +[^ \n]+| +$", re.MULTILINE)


def train_tokenizer(
    texts: Iterable[str],
    n_ranks: int,
    path: str | Path,
    kind: Kind = "tiktoken",
    digits: bool = False,
) -> None:
    """Writes a tokenizer of `n_ranks` ordinary tokens, learned from `texts`, in place of any other.

    Special tokens are on top of that: 256 for `kind` tiktoken, 3 for sentencepiece. With `digits`
    no token has more than one digit, which helps small models with sums; sentencepiece's never
    have, as Llama 2's. Learning is done by Hugging Face's `tokenizers` and by `sentencepiece`.

    Raises ValueError for a number that the texts have too few pairs for or that is too small for
    single bytes and characters, or where `tokenizers` is not installed.
    """
    if kind not in SPECIAL_TOKENS:
        raise InputError(f"kind {kind!r} is none of {', '.join(SPECIAL_TOKENS)}")
    learn = _sentencepiece if kind == "sentencepiece" else _tiktoken
    # Half of a surrogate pair, which JSON can spell, becomes U+FFFD, as in Tokenizer.encode.
    valid = (t.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for t in texts)
    found, content = learn(valid, n_ranks, digits)
    if found != n_ranks:
        raise InputError(
            f"the texts give {found} ranks, not {n_ranks}; use more text, or a vocab_size of at "
            f"most {found + SPECIAL_TOKENS[kind]}"
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content)


def _tiktoken(texts: Iterator[str], n_ranks: int, digits: bool) -> tuple[int, bytes]:
    try:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    except ImportError as error:
        raise InputError(
            f"a tokenizer of tiktoken's kind is learned by tokenizers ({error}): "
            "pip install 'llama[train]'"
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
    ranks = {
        bytes(BYTES[character] for character in token): rank
        for token, rank in tokenizer.get_vocab().items()
    }
    return len(ranks), rank_lines(ranks)


def _sentencepiece(texts: Iterator[str], n_ranks: int, digits: bool) -> tuple[int, bytes]:
    words = _words(texts)
    if not words:
        raise InputError("no text to learn from; give some that is not blank")
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
            raise InputError(f"sentencepiece cannot learn from this text: {error}") from error
        raise InputError(
            f"n_ranks={n_ranks}: the 256 bytes and each character of the text need one, so "
            f"vocab_size is at least {needed[1]}"
        ) from None
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return processor.vocab_size() - special, model.getvalue()


def _words(texts: Iterator[str]) -> Counter[str]:
    """Words, and how often each occurs: all that SentencePiece takes from lines of text.

    Counted here they come in a third of the time, and the text need not be in memory. A word has
    its spaces in front, but the one that SentencePiece itself puts there.
    """
    words: Counter[str] = Counter()
    for text in texts:
        lines = "\n".join(f" {line}" for line in _RESERVED.split(text) if line)
        words.update(word[1:] for word in _WORD.findall(lines))
    return words


def tokenizer_command(
    data_path: str | Sequence[str],
    out: str,
    vocab_size: int = 4096,
    kind: Kind = "tiktoken",
    digits: bool = False,
    skip_bad_lines: bool = False,
) -> None:
    """Learns a tokenizer from text and writes its file.

    Args:
        data_path: .txt or .jsonl files: a file, a folder, a pattern, or several with commas.
        out: the file to write; one that is there already is left alone.
        vocab_size: of all tokens, special ones included (Llama 3 has 256 of these, Llama 2 has 3).
        kind: tiktoken, as Llama 3's, or sentencepiece, as Llama 2's.
        digits: learn no token of several digits; small models do sums better so.
        skip_bad_lines: count lines that can't be read instead of stopping at the first.
    """
    path = Path(str(out))
    if path.exists():
        raise FileExistsError(
            f"{path} is there already, and models may depend on it; give another name, or remove it"
        )
    if kind not in SPECIAL_TOKENS or type(vocab_size) is not int:
        kinds = ", ".join(SPECIAL_TOKENS)
        raise InputError(f"kind is one of {kinds}, vocab_size a number: {kind!r}, {vocab_size!r}")
    sources = find_sources(data_path)
    size = sum(source.stat().st_size for source in sources)
    with console.progress(size, "Reading") as bar:

        def seen() -> Iterator[str]:
            for text in read_texts(sources, skip_bad_lines):
                bar.update(len(text))
                yield text

        train_tokenizer(seen(), vocab_size - SPECIAL_TOKENS[kind], path, kind, digits)
    console.say(f"{path}: {vocab_size:,} tokens, {SPECIAL_TOKENS[kind]} of them special")
