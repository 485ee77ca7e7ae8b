"""The models that were pulled from a hub: a name for each, its folder, and where it is from.

    open_folder("llama3.2:1b")          # the files of a pulled model, or of a folder of that name
    [model.name for model in pulled_models()]
    copy("llama3.2:1b", "assistant")    # another name for the same files
    remove("assistant")

Below `models_root()` each name has a folder, and in it

    pulled.json      the record: what the files are, and in which folder; the name exists with it
    5fd2a04b91c7/    the files of one version, and `.part` files while they are downloaded

The record is replaced in one step when all files of a version are there and have the right
checksums, so a process that is killed leaves the version that was there before.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from llama.errors import InputError, MissingFileError
from llama.storage.files import Folder, cache_root, expand, read_json, write_json
from llama.storage.model_names import RELEASED, model_name, released

_RECORD = "pulled.json"
_BUNDLED = Path(__file__).parents[2] / "params" / "tiny"
_MAX_NAME = 200  # characters; file systems allow 255 bytes


class BusyError(InputError):
    """Another process or thread changes the model."""


@dataclasses.dataclass(frozen=True)
class PulledFile:
    """A file of a pulled model; its size in bytes and its sha256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class PulledModel:
    """A model that was pulled, or the one that is bundled with this package.

    name        what a command takes instead of a folder: llama3.2:1b, hf:owner/repository, ...
    folder      where its files are
    source      hf:owner/repository, ms:owner/repository, Meta's address, or `bundled`
    revision    the commit on Hugging Face; on ModelScope as far as it is known
    pulled_at   the time in UTC
    """

    name: str
    folder: Path
    source: str
    revision: str | None
    license: str | None
    pulled_at: datetime
    files: tuple[PulledFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        """A sha256 over names and checksums, in hexadecimal: the same for the same files."""
        lines = sorted(f"{file.sha256}  {file.name}\n" for file in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def models_root() -> Path:
    """`$LLAMA_MODELS`, else `models` in `cache_root()`."""
    given = os.environ.get("LLAMA_MODELS")
    return Path(expand(given)) if given else cache_root() / "models"


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """The folder at a path, here or remote; else that of a pulled model of this name.

    Raises what `Folder` raises, and MissingFileError for what is neither; the message says how to
    pull it, where that is known.
    """
    text = expand(path)
    if "://" in text or os.path.lexists(text):
        return Folder(text)
    if model := find(text):
        if gone := [file.name for file in model.files if not (model.folder / file.name).exists()]:
            raise MissingFileError(
                f"{gone[0]} of {model.name} is gone from {model.folder}, or from where a link "
                f"points to; `llama pull {model.name}` gets it again"
            )
        return Folder(model.folder)
    raise MissingFileError(
        f"checkpoint folder {text} is not there, nor was a model of that name pulled; {_hint(text)}"
    )


def find(name: str) -> PulledModel | None:
    """The pulled model of a name, in any spelling that `model_name` knows; None without one."""
    name = model_name(name)
    if len(name) < _MAX_NAME and (record := folder_of_name(name) / _RECORD).is_file():
        return _read_record(record)
    return _bundled() if name == "tiny" else None


def pulled_models() -> list[PulledModel]:
    """All of them, by name; the bundled one too, where it is beside the package."""
    found = {bundled.name: bundled} if (bundled := _bundled()) else {}
    for record in models_root().glob(f"*/{_RECORD}"):
        with contextlib.suppress(InputError):  # damaged: it counts as unfinished
            model = _read_record(record)
            found[model.name] = model
    return [found[name] for name in sorted(found)]


def unfinished_pulls() -> dict[str, int]:
    """Names of models whose download was interrupted, and the bytes that are here of each."""
    folders = {unquote(path.name): path for path in models_root().glob("[!.]*") if path.is_dir()}
    whole = {model.name for model in pulled_models()}
    return {name: _size(folders[name]) for name in sorted(set(folders) - whole)}


def remove(name: str) -> int:
    """Removes a pulled model, or what is here of an interrupted download; returns bytes freed.

    Files that another name has too, or that are another program's, take no space of their own.
    Raises MissingFileError for an unknown name and InputError for one that is being pulled.
    """
    name = model_name(name)
    folder = folder_of_name(name)
    if len(name) >= _MAX_NAME or not folder.is_dir():
        if find(name):
            raise InputError(f"{name} is part of this package; it can't be removed")
        raise unknown(name)
    with locked(name):
        freed = _size(folder)
        (folder / _RECORD).unlink(missing_ok=True)  # first: from here on the name is gone
        shutil.rmtree(folder)
    return freed


def copy(name: str, new: str) -> PulledModel:
    """Gives a pulled model another name, without another copy of its files.

    Raises MissingFileError for an unknown name and InputError for a new one that is taken.
    """
    model = find(name)
    if model is None:
        raise unknown(name)
    new = model_name(new)
    if not 0 < len(new) < _MAX_NAME:
        raise InputError(f"a model's name has 1 to {_MAX_NAME - 1} characters, not {len(new)}")
    with locked(new):
        if find(new):
            raise InputError(f"there is a model {new} already; remove it, or give another name")
        folder = folder_of_name(new) / model.folder.name
        folder.mkdir(parents=True, exist_ok=True)
        for file in model.folder.iterdir():
            if not (folder / file.name).exists():
                link_or_copy(file, folder / file.name)
        return write_record(dataclasses.replace(model, name=new, folder=folder))


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file, by a hard link; a copy where the disk has none."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def folder_of_name(name: str) -> Path:
    """Where a model of this name has its record and its versions; a visible folder of the root."""
    quoted = quote(name, safe=":@")
    return models_root() / (f"%2E{quoted[1:]}" if quoted[:1] in ("", ".") else quoted)


def write_record(model: PulledModel) -> PulledModel:
    """Makes a model known whose files are in place, and removes other versions of it."""
    content = dataclasses.asdict(model) | {
        "folder": model.folder.name,
        "pulled_at": model.pulled_at.isoformat(timespec="seconds"),
        "files": {file.name: {"size": file.size, "sha256": file.sha256} for file in model.files},
    }
    write_json(model.folder.parent / _RECORD, content)
    for other in model.folder.parent.iterdir():
        if other.is_dir() and other != model.folder:
            shutil.rmtree(other)
    return model


@contextlib.contextmanager
def locked(name: str, timeout: float = 0) -> Iterator[None]:
    """Keeps other processes and threads from changing the model of a name.

    Raises BusyError if another one has it for longer than `timeout` seconds. Lock files stay:
    one that is removed while another process waits for it would let two of them in.
    """
    import filelock

    folder = models_root() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / f"{folder_of_name(name).name}.lock", thread_local=False)
    try:
        lock.acquire(timeout=timeout)
    except filelock.Timeout:
        raise BusyError(f"{name} is being pulled by another process; wait, or stop it") from None
    try:
        yield
    finally:
        lock.release()


def _read_record(path: Path) -> PulledModel:
    content = read_json(str(path))
    try:
        files = content["files"].items()
        return PulledModel(
            content["name"],
            path.parent / content["folder"],
            content["source"],
            content["revision"],
            content["license"],
            datetime.fromisoformat(content["pulled_at"]),
            tuple(PulledFile(name, file["size"], file["sha256"]) for name, file in files),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error!r}); pull the model again") from error


@functools.cache
def _bundled() -> PulledModel | None:
    names = ("params.json", "tokenizer.model", "consolidated.00.pth")
    paths = [_BUNDLED / name for name in names]
    if not all(path.is_file() for path in paths):
        return None
    sums = (hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    files = [PulledFile(p.name, p.stat().st_size, s) for p, s in zip(paths, sums, strict=True)]
    time = datetime.fromtimestamp(int(paths[-1].stat().st_mtime), UTC)
    return PulledModel("tiny", _BUNDLED, "bundled", None, "Apache-2.0", time, tuple(files))


def _size(folder: Path) -> int:
    """Bytes that would be free without a folder: hard links elsewhere keep a file."""
    stats = (path.lstat() for path in folder.rglob("*") if path.is_file())
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)


def _hint(name: str) -> str:
    if short := released(name):
        return f"`llama pull {short.name}` fetches it"
    if name.startswith(("hf:", "ms:")):
        return f"`llama pull {name}` fetches it"
    return f"pass the folder that has it, or a name that `llama list` shows{did_you_mean(name)}"


def unknown(name: str) -> MissingFileError:
    """The error for a name that no pulled model has."""
    also = did_you_mean(name, ())
    return MissingFileError(f"no model {name:.99} was pulled{also}; see `llama list`")


def did_you_mean(name: str, others: Iterable[str] = RELEASED) -> str:
    """The end of a message about an unknown name: similar ones that are here, or of `others`."""
    known = [*(model.name for model in pulled_models()), *unfinished_pulls(), *others]
    near: list[Any] = difflib.get_close_matches(name, dict.fromkeys(known), n=3)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
