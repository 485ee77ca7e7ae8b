"""Checksums of whole files: lists that come with a checkpoint, and the one `llama convert` writes.

A list has one line for each file, as `sha256sum` and `md5sum` write and check them:

    9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  consolidated.00.pth
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from llama.storage.files import AGAIN, Folder, atomic_write, what_it_is

_OURS = "checksums.sha256"
_LISTS = (_OURS, "checklist.chk")  # Meta's, md5; there is also its tokenizer_checklist.chk
_LINE = re.compile(r"([0-9a-fA-F]{32}|[0-9a-fA-F]{64})\s+\*?(?:\./)?(\S.*)")
_BLOCK_BYTES = 2**24


class Checksum(NamedTuple):
    """The digest that a list has for a file."""

    digest: str
    kind: str  # md5 or sha256
    listed_in: str  # name of the list


def read_checksums(folder: Folder) -> tuple[dict[str, list[Checksum]], list[str]]:
    """The checksums of each file, from all lists in a folder; and what is wrong with the lists."""
    found: dict[str, list[Checksum]] = {}
    problems = []
    for name in (n for n in folder.names if n.endswith(_LISTS)):
        data = folder.read(name)
        if what := what_it_is(data[:1000]):
            problems.append(f"{folder.where(name)} {what}")
            continue
        for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1):
            if match := _LINE.fullmatch(line.strip()):
                kind = "md5" if len(match[1]) == 32 else "sha256"
                checksum = Checksum(match[1].lower(), kind, name)
                found.setdefault(match[2], []).append(checksum)
            elif line.strip():
                problems.append(
                    f"line {number} of {folder.where(name)} is not a checksum and a file name: "
                    f"{line:.60}; {AGAIN}"
                )
    return found, problems


def write_checksums(
    folder: Path, names: Iterable[str], read: Callable[[int], object] = lambda n: None
) -> None:
    """Writes `checksums.sha256` for these files; `read` gets the number of bytes read each time."""
    write_checksum_list(folder, {name: digest(folder / name, "sha256", read) for name in names})


def write_checksum_list(folder: Path, sha256: Mapping[str, str]) -> None:
    """Writes `checksums.sha256` with the checksums of files that are known by now."""
    lines = [f"{sha256[name]}  {name}\n" for name in sorted(sha256)]
    with atomic_write(folder / _OURS) as file:
        file.write("".join(lines).encode())


def digest(path: Path, kind: str, read: Callable[[int], object]) -> str:
    """The md5 or sha256 of a file, in hexadecimal; `read` as for `write_checksums`."""
    found = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            found.update(block)
            read(len(block))
    return found.hexdigest()
