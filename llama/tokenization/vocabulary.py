"""The kinds of tokenizer file, and what each does with text.

Two are called `tokenizer.model`: Llama 3's list of tiktoken ranks and Llama 2's SentencePiece
model. The third, Hugging Face's `tokenizer.json`, holds the same tokenizer as Llama 3's ranks,
id for id (`tokenizer_json.py`). `llama.tokenizer.Tokenizer` hides the difference.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import tiktoken

from llama.errors import InputError
from llama.storage import files
from llama.tokenization.tokenizer_json import FETCH_AGAIN, parse_tokenizer_json

# How Llama 3 cuts text into words before it merges bytes (as in its tokenizer.json).
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tiktoken's regex engine overflows its stack on a run of about a million spaces. Where the text
# is cut decides its ids, so these limits are those of Meta's package.
_MAX_BLOCK_CHARS = 400_000
_MAX_RUN_CHARS = 25_000


def open_vocabulary(path: str) -> TiktokenVocabulary | SentencePieceVocabulary:
    """The vocabulary in a file, of the kind that its content shows.

    Raises FileNotFoundError or IsADirectoryError, or InputError for an incomplete vocabulary.
    """
    data = files.read_bytes(path)
    if _RANK_LINE.match(data):
        ranks = _parse_ranks(path, data)
        return TiktokenVocabulary(path, ranks, _llama3_special_tokens(len(ranks)), LLAMA3_PATTERN)
    if problem := files.what_it_is(data[:1000]):
        raise InputError(f"{path} {problem}")
    if data.lstrip().startswith(b"{"):
        return TiktokenVocabulary(path, *parse_tokenizer_json(path, data))
    return SentencePieceVocabulary(path, data)


class TiktokenVocabulary:
    """Byte-pair ranks and special tokens: Llama 3's kind, read from either of its files.

    `pattern` cuts the text into words, within which bytes are merged. `name` is for errors.
    """

    def __init__(
        self, name: str, ranks: dict[bytes, int], special_tokens: dict[str, int], pattern: str
    ):
        if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
            raise InputError(f"{name} has no token for the single byte {missing[0]:#04x}")
        self.ranks = ranks
        self.special_tokens = special_tokens
        self.pattern = pattern
        self.n_words = len(ranks) + len(special_tokens)
        self.bos_id = special_tokens["<|begin_of_text|>"]
        self.eos_id = special_tokens["<|end_of_text|>"]
        self.pad_id = special_tokens.get("<|finetune_right_pad_id|>", self.eos_id)
        stops = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
        self.stop_tokens = {special_tokens[stop] for stop in stops if stop in special_tokens}
        whole = pattern
        if pattern != LLAMA3_PATTERN:
            # tiktoken drops what the pattern does not match. Llama 3's matches everything; for
            # another one, what lies between its matches is a word too, as for Hugging Face.
            whole = rf"{pattern}|(?:(?!{pattern})[\s\S])+"
        try:
            self._encoding = tiktoken.Encoding(
                name, pat_str=whole, mergeable_ranks=ranks, special_tokens=special_tokens
            )
        except ValueError as error:
            raise InputError(f"{name}: {pattern!r} is no pattern for words: {error}") from None

    def encode(self, s: str, allowed: set[str]) -> list[int]:
        ids: list[int] = []
        for block in _split_long(s):
            ids += self._encoding.encode(block, allowed_special=allowed, disallowed_special=())
        return ids

    def decode(self, ids: list[int]) -> str:
        return self._encoding.decode(ids, errors="replace")

    def piece(self, token_id: int) -> bytes:
        return self._encoding.decode_single_token_bytes(token_id)


class SentencePieceVocabulary:
    """A SentencePiece model, Llama 2's.

    Long texts are not cut: each block would get a dummy space in front. Nor is it needed (a
    million spaces take a quarter of a second).
    """

    def __init__(self, path: str, data: bytes):
        self._processor = sp = sentencepiece.SentencePieceProcessor()
        try:
            sp.LoadFromSerializedProto(data)
        except RuntimeError:
            raise InputError(
                f"{path} is neither tiktoken ranks nor a tokenizer.json nor a SentencePiece model; "
                f"{FETCH_AGAIN}"
            ) from None
        self.n_words = sp.vocab_size()
        self.bos_id, self.eos_id, unk_id = sp.bos_id(), sp.eos_id(), sp.unk_id()
        if min(self.bos_id, self.eos_id, unk_id) < 0:
            raise InputError(f"{path} is a SentencePiece model, but lacks <s>, </s> or <unk>")
        self.pad_id = sp.pad_id() if sp.pad_id() >= 0 else unk_id
        self.stop_tokens = {self.eos_id}
        special_ids = (i for i in range(self.n_words) if sp.is_control(i) or sp.is_unknown(i))
        self.special_tokens = {sp.id_to_piece(i): i for i in special_ids}

    def encode(self, s: str, allowed: set[str]) -> list[int]:
        # Half a surrogate pair is an error here; tiktoken makes it U+FFFD, in this way.
        s = s.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return list(self._processor.encode(s))

    def decode(self, ids: list[int]) -> str:
        return str(self._processor.decode(ids))

    def piece(self, token_id: int) -> bytes | str:
        """One byte, or the text of a piece that is not the first of a text."""
        piece = self._processor.id_to_piece(token_id)
        if self._processor.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])  # "<0xE2>"
        if piece in self.special_tokens:
            return self.decode([token_id])
        return piece.replace("\u2581", " ")


def _llama3_special_tokens(first_id: int) -> dict[str, int]:
    """Llama 3's 256 special tokens, with the names of Hugging Face's Llama 3.1 tokenizer.json.

    One table serves 3.0 and 3.1 to 3.3, whose files of ranks are equal. The five tokens that 3.0
    uses have the same ids in all; what is new in 3.1 (`eom_id`, `python_tag`, ...) was reserved in
    3.0, whose models never saw it. Only the numbers of the reserved names differ, which nobody
    writes or reads.
    """
    reserved = [f"reserved_special_token_{n}" for n in range(248)]
    names = ["begin_of_text", "end_of_text", *reserved[:2], "finetune_right_pad_id", reserved[2]]
    names += ["start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag", *reserved[3:]]
    return {f"<|{name}|>": first_id + offset for offset, name in enumerate(names)}


def _split_long(s: str) -> Iterator[str]:
    """Cuts `s` into blocks, and a block wherever a run of white space, or of anything else, has
    reached the limit. Joined, the results are `s`.
    """
    half = _MAX_RUN_CHARS // 2
    for block_start in range(0, len(s), _MAX_BLOCK_CHARS):
        block = s[block_start : block_start + _MAX_BLOCK_CHARS]
        start = 0
        # Looking at every word would cost as much as encoding it. A run over the limit fills one
        # of these chunks, which is quick to check.
        chunks = (block[i : i + half] for i in range(0, len(block), half))
        if any(chunk.isspace() or chunk.split(maxsplit=1) == [chunk] for chunk in chunks):
            for run in re.finditer(r"\s+|\S+", block):
                for cut in range(run.start() + _MAX_RUN_CHARS, run.end(), _MAX_RUN_CHARS):
                    yield block[start:cut]
                    start = cut
        yield block[start:]


_RANK_LINE = re.compile(rb"\s*[A-Za-z0-9+/]+={0,2}[ \t]+\d+[ \t]*(?:[\r\n]|$)")


def _parse_ranks(path: str, data: bytes) -> dict[bytes, int]:
    """tiktoken's format: on each line a token's bytes in base64 and its rank, 0 to n - 1."""
    lines = [line for line in data.splitlines() if line.strip()]
    ranks: dict[bytes, int] = {}
    for line in lines:
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise InputError(
                f"{path}: {line[:60]!r} is not a token in base64 and its rank; {FETCH_AGAIN}"
            ) from None
    if sorted(ranks.values()) != list(range(len(lines))):
        raise InputError(
            f"{path}: {len(lines)} lines should give as many tokens the ranks 0 to "
            f"{len(lines) - 1}, each once, but some are repeated or missing; {FETCH_AGAIN}"
        )
    return ranks


def write_tiktoken_ranks(vocabulary: TiktokenVocabulary, path: Path) -> None:
    """Writes the file that Meta calls `tokenizer.model`.

    It holds neither special tokens nor a pattern: readers take Llama 3's. Raises InputError where
    the vocabulary has others.
    """
    llama3 = _llama3_special_tokens(len(vocabulary.ranks))
    special = vocabulary.special_tokens
    named = {t: i for t, i in special.items() if not t.startswith("<|reserved_special_token_")}
    wrong = [f"{name} has id {i}" for name, i in named.items() if i != llama3.get(name)]
    if set(special.values()) != set(llama3.values()):
        wrong.append(f"there are {len(special)} special tokens, not 256 after all others")
    if vocabulary.pattern != LLAMA3_PATTERN:
        wrong.append(f"the pattern is {vocabulary.pattern!r:.60}")
    if wrong:
        raise InputError(
            f"{path}: a file of ranks implies the special tokens and the pattern of Llama 3, but "
            f"here {wrong[0]}; write a tokenizer.json"
        )
    path.write_bytes(rank_lines(vocabulary.ranks))


def rank_lines(ranks: dict[bytes, int]) -> bytes:
    """The content of a file of ranks."""
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in by_rank)
