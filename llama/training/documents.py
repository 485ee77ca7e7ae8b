"""Training documents: token ids with a loss mask, and the text files they are made from.

    text_document(tokenizer, "Once upon a time")      # all of it counts in the loss, with its end
    dialog_document(tokenizer, dialog)                # the answers count, each with its end

    user \\n\\n  How much is 1+1? eot  assistant \\n\\n  It  is  2  .  eot
    .    .     .   .    .  .    .    .          .      x   x   x  x  x

A `.txt` holds texts, with a line `<|endoftext|>` between one and the next. A `.jsonl` holds on each
line one of `{"text": ...}`, `{"prompt": ..., "response": ...}` and `{"messages": [{"role": ...,
"content": ...}, ...]}`, the last with or without the `tools` that are offered; other keys are
ignored. Both are UTF-8.

    sources = find_sources("data/")                   # [data/dialogs.jsonl, data/stories.txt]
    for text in read_texts(sources): ...              # to train a tokenizer on
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
from llama.dialog import Dialog, Message, Role, Tool, ToolFormat, checked_dialog, checked_tools
from llama.errors import InputError, MissingFileError
from llama.storage import files
from llama.tokenizer import ChatFormat, Tokenizer

SUFFIXES = (".txt", ".jsonl")
_SEPARATOR = b"<|endoftext|>"  # GPT-2's
_FORMS = ({"text"}, {"prompt", "response"}, {"messages"})
_HEAD_BYTES = 8192
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Document:
    """Token ids (n,), int32, and which of them count in the loss as targets (n,), bool."""

    tokens: Tensor
    loss_mask: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


class Conversation(NamedTuple):
    """A dialog, and the functions that it offers."""

    messages: list[Message]
    tools: list[Tool]


def _document(tokens: list[int], loss_mask: list[bool]) -> Document:
    # By way of numpy, which reads a list in a third of the time.
    ids, flags = np.array(tokens, np.int32), np.array(loss_mask, np.bool_)
    return Document(torch.from_numpy(ids), torch.from_numpy(flags))


def text_document(
    tokenizer: Tokenizer, text: str, begins: bool = True, ends: bool = True
) -> Document:
    """A text between its begin and end tokens; all but the begin token counts in the loss.

    A block of a long text has the one only where the text `begins`, the other where it `ends`.
    """
    tokens = tokenizer.encode(text, bos=begins, eos=ends)
    return _document(tokens, [False] * begins + [True] * (len(tokens) - begins))


def dialog_document(
    tokenizer: Tokenizer,
    dialog: Dialog,
    loss_roles: Collection[Role] = frozenset[Role](["assistant"]),
    tools: Iterable[Tool] | None = None,
    tool_format: ToolFormat = "json",
) -> Document:
    """A whole dialog in the tokenizer's chat format, Llama 3's or Llama 2's.

    The content of messages of `loss_roles` counts in the loss, with their calls and the token that
    ends each; in Llama 2's format that can only be the assistant. `tools` are functions that the
    dialog offers, in the model's `tool_format` (see `ChatFormat`). Raises ValueError where those
    messages are empty, and what the chat format raises.
    """
    if tokenizer.is_sentencepiece and (others := set(loss_roles) - {"assistant"}):
        raise InputError(f"Llama 2's format has no turn of {others.pop()!r} to train on")
    messages = checked_dialog(dialog)
    answers = [m for m in messages if m["role"] in loss_roles]
    if not any(m["content"].strip() or m.get("tool_calls") for m in answers):
        raise InputError("the dialog has no answer to train on")
    chat = ChatFormat(tokenizer, tool_format)
    tokens: list[int] = []
    loss_mask: list[bool] = []
    for role, prompt, completion in chat.encode_turns(messages, tools):
        tokens += prompt + completion
        loss_mask += [False] * len(prompt) + [role in loss_roles] * len(completion)
    return _document(tokens, loss_mask)


def find_sources(data_path: str | Path | Sequence[str | Path]) -> list[Path]:
    """The `.txt` and `.jsonl` files of a file, a folder, a pattern (`data/**/*.txt`) or several.

    Several are a list, or one string with commas. A folder stands for the files in and below it,
    without hidden ones. Each file is listed once, in the order of `data_path`, sorted within a
    folder or pattern. Raises FileNotFoundError where nothing is found, ValueError for a file of
    another kind.
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
        raise InputError(f"{name}: training text has to be on this machine; download it")
    path = Path(name).expanduser()
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path} is none of {' and '.join(SUFFIXES)}: write texts into a .txt, with a line "
            f"{_SEPARATOR.decode()} between them, or JSON objects into a .jsonl, one a line"
        )
    if path.exists():
        matches = [str(path)]
    elif glob.has_magic(name):
        matches = sorted(glob.glob(str(path), recursive=True))
    else:
        raise MissingFileError(
            f"{path} is not there; give a .txt or .jsonl file, a folder of such, or a pattern"
        )
    below = [file for match in matches for file in _files_at(Path(match))]
    fitting = sorted(file for file in below if file.suffix.lower() in SUFFIXES)
    if not fitting:
        kinds = Counter(file.suffix or file.name for file in below)
        there = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3)) or "nothing"
        raise MissingFileError(f"no .txt or .jsonl in {path}; it holds {there}")
    return fitting


def _files_at(path: Path) -> list[Path]:
    """The file itself, or the files in and below a folder that are not hidden there."""
    if not path.is_dir():
        return [path]
    found = [file for file in path.rglob("*") if file.is_file()]
    return [f for f in found if not any(n.startswith(".") for n in f.relative_to(path).parts)]


@dataclass
class BadLines:
    """The unusable lines of a source: an error at the first, or with `skip` a count.

    `first` is where the first one is and what is wrong with it.
    """

    source: Path
    skip: bool
    count: int = 0
    first: str = ""

    def add(self, line: int, reason: object) -> None:
        """Raises ValueError, or counts."""
        self.count += 1
        self.first = self.first or f"line {line}: {reason}"
        self.check()

    def check(self) -> None:
        """Raises ValueError for bad lines that are not to be skipped."""
        if self.count and not self.skip:
            raise InputError(f"{self.source}, {self.first} (--skip_bad_lines leaves it out)")

    def report(self) -> None:
        """Prints how many were skipped, if any."""
        if self.count:
            console.notice(f"{self.source}: {self.count} bad line(s) skipped, first {self.first}")


class Raw(NamedTuple):
    """A line of JSON, as bytes, or a text or a block of a long one."""

    line: int  # where it begins in its source, from 1
    content: bytes | str
    begins: bool = True
    ends: bool = True


def read_raw(source: Path, bad: BadLines, block_chars: int | None = None) -> Iterator[Raw]:
    """The lines of a `.jsonl`, or the texts of a `.txt`, as a stream.

    Blank lines before a text and white space after it are dropped, and blank texts. With
    `block_chars` a longer text comes in blocks of that size, so that it is never in memory whole.
    Raises ValueError for an empty file, and one that is not UTF-8.
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
        return "is empty"
    if head.startswith(b"version https://git-lfs"):
        return files.what_it_is(head)
    if head.startswith(_UTF16):
        return "is UTF-16, not UTF-8: convert it, `iconv -f UTF-16 -t UTF-8 OLD > NEW`"
    if b"\0" in head:
        return "holds zero bytes: it is not UTF-8 text"
    return None


def _read_texts(file: BinaryIO, bad: BadLines, block_chars: int | None) -> Iterator[Raw]:
    lines: list[str] = []  # of the text so far, without what was yielded
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
        except InputError as error:
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
            # The last block, which carries the end of the text, must not be blank.
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


def parse_line(line: bytes) -> str | Conversation:
    """The text or the dialog on a line of a `.jsonl`. Raises ValueError, saying what is wrong."""
    text = _decoded(line)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg} at character {error.colno}") from None
    except ValueError as error:  # a number of too many digits
        raise InputError(f"JSON that can't be read: {error}") from None
    except RecursionError:
        raise InputError("JSON that is nested too deeply") from None
    if not isinstance(value, dict):
        raise InputError(f"a JSON {type(value).__name__}, where each line should be an object")
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
        prompt, response = value["prompt"], value["response"]
        question: Message = {"role": "user", "content": prompt}
        return Conversation([question, {"role": "assistant", "content": response}], [])
    if not isinstance(value["messages"], list):
        raise InputError(f"messages should be a list: {value['messages']!r:.60}")
    return Conversation(checked_dialog(value["messages"]), checked_tools(value.get("tools")))


def _parsed(raw: Raw) -> str | Conversation:
    return parse_line(raw.content) if isinstance(raw.content, bytes) else raw.content


def raw_document(
    tokenizer: Tokenizer, raw: Raw, tool_format: ToolFormat = "json"
) -> Document | None:
    """The document of a text, a block of one, or a line; None for a blank text.

    Raises ValueError for a bad line.
    """
    content = _parsed(raw)
    if not isinstance(content, str):
        dialog, tools = content
        return dialog_document(tokenizer, dialog, tools=tools, tool_format=tool_format)
    if raw.begins and raw.ends and not content.strip():
        return None
    return text_document(tokenizer, content, raw.begins, raw.ends)


def read_texts(sources: Iterable[Path], skip_bad_lines: bool = False) -> Iterator[str]:
    """The texts of files, and the contents of their dialogs' messages, as a stream.

    Texts of a `.txt` longer than a million characters come in blocks of that size. Raises
    ValueError for a bad line, with its file and number, or prints how many were skipped.
    """
    for source in sources:
        bad = BadLines(source, skip_bad_lines)
        for raw in read_raw(source, bad, block_chars=1_000_000):
            try:
                content = _parsed(raw)
            except InputError as error:
                bad.add(raw.line, error)
                continue
            if isinstance(content, str):
                yield content
            else:
                yield from (message["content"] for message in content.messages)
        bad.report()
