"""Texts and examples from files and standard input, for `llama tasks`.

A `.jsonl` has an object in each line: {"text": ..., "label": ...} for a labelled text. Other keys
are ignored. Any other file, and standard input, has a text in each line.
"""

import json
import os
import stat
import sys
from collections.abc import Sequence
from typing import Any

from llama.errors import InputError, MissingFileError
from llama.storage.files import read_text
from llama.tasks.label_prompts import LabelledText


def read_entries(
    texts: Sequence[str], file: str | None, key: str, optional: tuple[str, ...] = ()
) -> list[dict[str, str]]:
    """The texts of the command line, of a file, or of standard input, as objects with `key`.

    Those of a `.jsonl` also have the keys in `optional` that their lines have. Raises InputError or
    MissingFileError, naming the file and line, for what can't be read, and where there is nothing.
    """
    if texts and file is not None:
        raise InputError(f"give texts or --file {file}, not both")
    if texts:
        return [{key: text} for text in texts]
    if file is not None and file.endswith(".jsonl"):
        return read_objects(file, (key,), optional)
    if file is not None:
        return [{key: line} for line in _lines(file, _read(file))]
    return [{key: line} for line in _lines("standard input", _piped())]


def read_examples(file: str) -> list[LabelledText]:
    """The labelled texts of a `.jsonl` file. Raises as `read_entries` does."""
    if not file.endswith(".jsonl"):
        raise InputError(f'{file} should be a .jsonl with {{"text": ..., "label": ...}} in a line')
    entries = read_objects(file, ("text", "label"))
    return [LabelledText(entry["text"], entry["label"]) for entry in entries]


def read_objects(
    file: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()
) -> list[dict[str, str]]:
    """The strings under these keys of each line's object. Raises as `read_entries` does."""
    entries = []
    for number, line in enumerate(_lines(file, _read(file)), 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}:{number}: this line is not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise InputError(f"{file}:{number}: should be a JSON object, not {entry!r:.60}")
        if missing := [key for key in needed if key not in entry]:
            has = ", ".join(entry) or "nothing"
            raise InputError(f"{file}:{number}: lacks {missing[0]!r}; it has {has}")
        found = {key: entry[key] for key in (*needed, *optional) if key in entry}
        for key, value in found.items():
            _check_string(f"{file}:{number}: {key}", value)
        entries.append(found)
    return entries


def _check_string(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name} should be a string that is not blank, not {value!r:.60}")


def _read(file: str) -> str:
    try:
        return read_text(file)
    except FileNotFoundError:
        raise MissingFileError(f"{file} is not there") from None


def _lines(name: str, text: str) -> list[str]:
    """The lines; InputError for a blank one, since there is one result for each line."""
    lines = text.removesuffix("\n").split("\n")
    lines = [line.removesuffix("\r") for line in lines]
    if lines == [""]:
        raise InputError(f"{name} is empty: give at least one line")
    if blank := [number for number, line in enumerate(lines, 1) if not line.strip()]:
        raise InputError(f"{name}: line {blank[0]} is blank")
    return lines


def _piped() -> str:
    """What comes through a pipe or from a file; a terminal and /dev/null have no texts."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:  # closed
        mode = 0
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        raise InputError("no text: give it as an argument, with --file or through a pipe")
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text: {error}") from error
