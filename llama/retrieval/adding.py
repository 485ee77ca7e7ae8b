"""What is to be added to an index: files, folders and named texts, and what became of each."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llama.errors import InputError, InputTypeError, MissingFileError
from llama.retrieval.parsing import SUFFIXES, Document, parse_document
from llama.storage.files import expand


@dataclass(frozen=True)
class Added:
    """What `Index.add` did: sources of documents, and with the reasons those it left alone.

    added, updated, unchanged: documents that were new, were others before, or were the same.
    failed: files that can't be read as a document.
    skipped: what a folder holds besides documents.
    """

    added: tuple[str, ...]
    updated: tuple[str, ...]
    unchanged: tuple[str, ...]
    failed: Mapping[str, str]
    skipped: Mapping[str, str]


class AddError(InputError):
    """Some documents could not be added; the others were. `added` says which."""

    def __init__(self, added: Added) -> None:
        super().__init__(added)
        self.added = added

    def __str__(self) -> str:
        reasons = "\n".join(self.added.failed.values())
        return f"{len(self.added.failed)} not added, the others are in the index:\n{reasons}"


@dataclass(frozen=True)
class Candidate:
    """A document that may be added: how to get its bytes, and the document of those.

    Both raise InputError or OSError, naming it, where that is not possible.
    """

    read: Callable[[], bytes]
    parse: Callable[[bytes], Document]


def named_texts(texts: Mapping[str, str]) -> dict[str, Candidate]:
    """Texts by their names."""
    for name, text in texts.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise InputTypeError(f"texts are {{name: text}}, got {{{name!r:.60}: {text!r:.60}}}")
        if not name.strip():
            raise InputError("the name of a text is empty")
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise InputError(f"{name!a}: half a surrogate pair in the name of a text")
    return {name: _named_text(name, text) for name, text in texts.items()}


def _named_text(name: str, text: str) -> Candidate:
    def read() -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{name}: half a surrogate pair at character {error.start}") from None

    def parse(data: bytes) -> Document:
        if not text.strip():
            raise InputError(f"{name}: it has no text")
        return Document(text)

    return Candidate(read, parse)


def files(
    paths: str | Path | Iterable[str | Path], skipped: dict[str, str]
) -> dict[str, Candidate]:
    """Files, and all documents in folders, by their absolute paths.

    What else folders hold goes to `skipped` with the reason, but for what is hidden. Raises
    MissingFileError for a path that does not exist.
    """
    found: dict[Path, None] = {}
    for path in [paths] if isinstance(paths, str | Path) else paths:
        if not isinstance(path, str | Path):
            raise InputTypeError(f"paths are strings or Paths, got {path!r:.60}")
        whole = absolute(path)
        if whole.is_dir():
            found.update(dict.fromkeys(_documents_in(whole, skipped)))
        elif whole.exists():
            found[whole] = None
        else:
            raise MissingFileError(f"{path}: there is no such file or folder")
    return {str(file): _file(file) for file in found}


def _documents_in(folder: Path, skipped: dict[str, str]) -> list[Path]:
    documents = []

    def fail(error: OSError) -> None:
        raise error  # os.walk leaves a folder out that it can't read

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in (Path(parent, name) for name in sorted(names) if not name.startswith(".")):
            if file.suffix.lower() in SUFFIXES:
                documents.append(file)
            else:
                skipped[str(file)] = f"{file}: none of {', '.join(SUFFIXES)}"
    return documents


def _file(file: Path) -> Candidate:
    def read() -> bytes:
        try:
            str(file).encode()
        except UnicodeEncodeError:
            raise InputError(f"{str(file)!a}: its name is not UTF-8; rename it") from None
        return file.read_bytes()

    return Candidate(read, lambda data: parse_document(file, data))


def absolute(path: str | Path) -> Path:
    """The path from the root, so that a file has one name from wherever it is added."""
    return Path(expand(path)).resolve()
