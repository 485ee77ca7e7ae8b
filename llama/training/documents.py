"""What a model learns from: documents of token ids, and the files that their text stands in.

    text_document(tokenizer, "Once upon a time")      # all of it is learned, with its end
    dialog_document(tokenizer, dialog)                # the answers are learned, with their ends

    user \\n\\n  How much is 1+1? eot  assistant \\n\\n  It  is  2  .  eot
    .    .     .   .    .  .    .    .          .      x   x   x  x  x

A `.txt` holds texts, with a line `<|endoftext|>` between one and the next. A `.jsonl` holds on each
line one of `{"text": ...}`, `{"prompt": ..., "response": ...}` and `{"messages": [{"role": ...,
"content": ...}, ...]}`, with any other keys beside. Both are UTF-8.

    sources = find_sources("data/")                   # [data/dialogs.jsonl, data/stories.txt]
    for text in read_texts(sources): ...              # to learn a tokenizer from
"""

import codecs
import glob
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llama import console
from llama.errors import InputError, MissingFileError
from llama.storage import files
from llama.tokenizer import ChatFormat, Dialog, Message, Role, Tokenizer, checked_dialog

SUFFIXES = (".txt", ".jsonl")
_SEPARATOR = b"<|endoftext|>"  # GPT-2's
_FORMS = ({"text"}, {"prompt", "response"}, {"messages"})
_HEAD_BYTES = 8192
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Document:
    """Token ids (n,), int32, and for each whether the model is to learn to write it (n,), bool."""

    tokens: Tensor
    learn: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


def _document(tokens: list[int], learn: list[bool]) -> Document:
    # By way of numpy, which reads a list in a third of the time.
    ids, flags = np.array(tokens, np.int32), np.array(learn, np.bool_)
    return Document(torch.from_numpy(ids), torch.from_numpy(flags))


def text_document(
    tokenizer: Tokenizer, text: str, begins: bool = True, ends: bool = True
) -> Document:
    """A text between its begin and end tokens, all of it to be learned.

    A part of a text has neither where it does not begin or end there.
    """
    tokens = tokenizer.encode(text, bos=begins, eos=ends)
    return _document(tokens, [False] * begins + [True] * (len(tokens) - begins))


def dialog_document(
    tokenizer: Tokenizer,
    dialog: Dialog,
    learn_roles: Collection[Role] = frozenset[Role](["assistant"]),
) -> Document:
    """A whole dialog in the tokenizer's chat format, Llama 3's or Llama 2's.

    What messages of `learn_roles` say is to be learned, with the token that ends each; of Llama 2's
    format those are the answers only. Raises ValueError where such messages say nothing, and what
    the chat format raises.
    """
    if tokenizer.is_sentencepiece and (others := set(learn_roles) - {"assistant"}):
        raise InputError(f"Llama 2's format has no turn of {others.pop()!r} that could be learned")
    messages = checked_dialog(dialog)
    if not any(m["role"] in learn_roles and m["content"].strip() for m in messages):
        raise InputError("the dialog has no answer to learn")
    tokens: list[int] = []
    learn: list[bool] = []
    for role, given, said in ChatFormat(tokenizer).encode_turns(messages):
        tokens += given + said
        learn += [False] * len(given) + [role in learn_roles] * len(said)
    return _document(tokens, learn)


def find_sources(data_path: str | Path | Sequence[str | Path]) -> list[Path]:
    """The `.txt` and `.jsonl` files of a file, a folder, a pattern (`data/**/*.txt`) or several.

    Several are a list, or one string with commas. A folder gives those in it and below, hidden ones
    excepted. Each file comes once, in the order of `data_path`, within a folder or pattern sorted.
    Raises FileNotFoundError where nothing is found, and ValueError for a file of another kind.
    """
    if isinstance(data_path, str) or not isinstance(data_path, Sequence):
        data_path = [data_path]
    found: dict[Path, Path] = {}
    for path in data_path:
        names = [str(path)]
        if isinstance(path, str) and not (path and Path(path).expanduser().exists()):
            names = [part.strip() for part in path.split(",") if part.strip()]
        for name in names:
            for source in _find(name):
                found.setdefault(source.resolve(), source)
    if not found:
        raise MissingFileError(f"no data in {data_path!r}: give a file, a folder or a pattern")
    return list(found.values())


def _find(name: str) -> list[Path]:
    if "://" in name:
        raise InputError(f"{name}: text to train on has to lie on this machine; download it")
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{path} is none of {' and '.join(SUFFIXES)}: write texts into a .txt, with a line "
                f"{_SEPARATOR.decode()} between them, or JSON objects into a .jsonl, one a line"
            )
        return [path]
    if path.is_dir():
        below = _files_below(path)
    elif glob.has_magic(name):
        matches = map(Path, sorted(glob.glob(str(path), recursive=True)))
        below = [f for m in matches for f in (_files_below(m) if m.is_dir() else [m])]
    else:
        raise MissingFileError(
            f"{path} is not there; give a .txt or .jsonl file, a folder of such, or a pattern"
        )
    fitting = sorted(file for file in below if file.suffix.lower() in SUFFIXES)
    if not fitting:
        kinds = Counter(file.suffix or file.name for file in below)
        there = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3)) or "nothing"
        raise MissingFileError(f"no .txt or .jsonl in {path}, but {there}")
    return fitting


def _files_below(folder: Path) -> list[Path]:
    found = [file for file in folder.rglob("*") if file.is_file()]
    return [f for f in found if not any(n.startswith(".") for n in f.relative_to(folder).parts)]


class BadLines:
    """What becomes of the lines of a source that cannot be learned from.

    The first is an error, or with `skip` they are counted, and `first` says where that one is and
    what is wrong with it.
    """

    def __init__(self, source: Path, skip: bool, count: int = 0, first: str = ""):
        self.source, self.skip, self.count, self.first = source, skip, count, first

    def add(self, line: int, reason: object) -> None:
        """Raises ValueError, or counts."""
        self.count += 1
        self.first = self.first or f"line {line}: {reason}"
        self.check()

    def check(self) -> None:
        """Raises ValueError if there are some and none is to be skipped."""
        if self.count and not self.skip:
            raise InputError(f"{self.source}, {self.first} (--skip_bad_lines leaves it out)")

    def report(self) -> None:
        """Says how many were skipped, if any."""
        if self.count:
            console.notice(f"{self.source}: {self.count} bad line(s) skipped, first {self.first}")


class Raw(NamedTuple):
    """What is read at a time: a line of JSON, as bytes, or a text, a long one in several parts."""

    line: int  # of its source where it begins, from 1
    content: bytes | str
    begins: bool = True
    ends: bool = True


def read_raw(source: Path, bad: BadLines, block_chars: int | None = None) -> Iterator[Raw]:
    """The lines of a `.jsonl`, or the texts of a `.txt`, as a stream.

    Texts come without blank lines before and white space after them, blank ones not at all. With
    `block_chars` a longer text comes in parts of that size, so that none is ever in memory whole.
    Raises ValueError for a file that holds nothing, or no UTF-8.
    """
    with source.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if problem := _problem(head):
            raise InputError(f"{source} {problem}")
        file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
        if source.suffix.lower() == ".txt":
            yield from _read_texts(file, bad, block_chars)
        else:
            lines = enumerate(file, start=1)
            yield from (Raw(number, line) for number, line in lines if line.strip())


def _problem(head: bytes) -> str | None:
    if not head.removeprefix(codecs.BOM_UTF8):
        return "is empty: there is nothing to learn"
    if head.startswith(b"version https://git-lfs"):
        return files.what_it_is(head)
    if head.startswith(_UTF16):
        return "is UTF-16, not UTF-8: convert it, `iconv -f UTF-16 -t UTF-8 OLD > NEW`"
    if b"\0" in head:
        return "holds zero bytes: it is no text, or none in UTF-8"
    return None


def _read_texts(file: BinaryIO, bad: BadLines, block_chars: int | None) -> Iterator[Raw]:
    lines: list[str] = []  # of the text so far, as far as it has not been given out
    begins, first_line, size = True, 1, 0
    for number, data in enumerate(itertools.chain(file, [_SEPARATOR]), start=1):
        if data.strip() == _SEPARATOR:
            text = "".join(lines).rstrip()
            if text or not begins:
                yield Raw(first_line, text, begins)
            lines, begins, size = [], True, 0
            continue
        try:
            line = _decoded(data)
        except ValueError as error:
            bad.add(number, error)
            continue
        is_blank = not line.strip()
        if begins and not lines:
            if is_blank:
                continue
            first_line = number
        lines.append(line)
        size += len(line)
        if block_chars and size > block_chars and not is_blank:
            text = "".join(lines)
            # What follows the last block has to have something for the end of the text.
            cut = (len(text.rstrip()) - 1) // block_chars * block_chars
            for start in range(0, cut, block_chars):
                yield Raw(first_line, text[start : start + block_chars], begins, ends=False)
                begins = False
            lines = [text[cut:]]
            size = len(lines[0])


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"its byte {error.start + 1}, {data[error.start]:#04x}, is not UTF-8; if the file is "
            "Latin-1, `iconv -f LATIN1 -t UTF-8 OLD > NEW` converts it"
        ) from None


def parse_line(line: bytes) -> str | list[Message]:
    """The text or the dialog on a line of a `.jsonl`. Raises ValueError, saying what is wrong."""
    try:
        value = json.loads(_decoded(line))
    except json.JSONDecodeError as error:
        raise InputError(f"no JSON: {error.msg} at character {error.colno}") from None
    except RecursionError:
        raise InputError("no JSON that could be read: it is nested too deeply") from None
    if not isinstance(value, dict):
        raise InputError(f"a {type(value).__name__}, where a .jsonl has one JSON object a line")
    form = {key for form in _FORMS for key in form if key in value}
    if form not in _FORMS:
        raise InputError(
            "it should have one of text, prompt with response, or messages, and has "
            f"{', '.join(value)[:100] or 'no key'}"
        )
    for key in form - {"messages"}:
        if not isinstance(value[key], str):
            raise InputError(f"{key} should be a string: {value[key]!r:.60}")
    if "text" in form:
        return value["text"]
    if "prompt" in form:
        asked, answered = value["prompt"], value["response"]
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    if not isinstance(value["messages"], list):
        raise InputError(f"messages should be a list: {value['messages']!r:.60}")
    try:
        return checked_dialog(value["messages"])
    except TypeError as error:
        raise InputError(error) from None


def raw_document(tokenizer: Tokenizer, raw: Raw) -> Document | None:
    """What is to be learned from a text, a part of one, or a line; None for a blank text.

    Raises ValueError for a bad line.
    """
    content = parse_line(raw.content) if isinstance(raw.content, bytes) else raw.content
    if not isinstance(content, str):
        return dialog_document(tokenizer, content)
    if raw.begins and raw.ends and not content.strip():
        return None
    return text_document(tokenizer, content, raw.begins, raw.ends)


def read_texts(sources: Iterable[Path], skip_bad_lines: bool = False) -> Iterator[str]:
    """The texts of files, and what the messages of their dialogs say, as a stream.

    Texts of a `.txt` that are longer than a million characters come in parts of that size. Raises
    ValueError for a bad line, with its file and number, or says how many were skipped.
    """
    for source in sources:
        bad = BadLines(source, skip_bad_lines)
        for raw in read_raw(source, bad, block_chars=1_000_000):
            try:
                content = parse_line(raw.content) if isinstance(raw.content, bytes) else raw.content
            except ValueError as error:
                bad.add(raw.line, error)
                continue
            yield from [content] if isinstance(content, str) else [m["content"] for m in content]
        bad.report()
