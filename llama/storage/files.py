"""Files of checkpoints and tokenizers, in a folder on this machine or in a remote store.

    folder = Folder("gs://bucket/Llama3.2-1B")
    folder.names                                  # ["consolidated.00.pth", "params.json", ...]
    folder.read("params.json")                    # all of a small file
    folder.open("consolidated.00.pth")            # a stream, to read parts of a large one
    folder.local("consolidated.00.pth")           # a path here; remote files are downloaded once

Remote files go through `blobfile`, imported with the first of them. Files are written with
`atomic_write` and `atomic_path`, so that nobody meets one that is half done.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from llama import console
from llama.errors import InputError, MissingFileError

if TYPE_CHECKING:
    import blobfile

AGAIN = "download or copy it again"
_NOT_DATA = {  # by the first bytes
    rb"\Z": f"is empty: {AGAIN}",
    rb"\0+\Z": f"is all zeros, perhaps of an interrupted download: {AGAIN}",
    rb"version https://git-lfs": "is a git-lfs pointer, not the file itself: run `git lfs pull`",
    rb"<": f"is a web page, perhaps of a failed download: {AGAIN}",
    rb'\{\s*"error"': f"is the error message of a server, not the file itself: {AGAIN}",
}
_STORES = re.compile(r"gs://[^/]+|(az://[^/]+|https://[^/]+\.blob\.core\.windows\.net)/[^/]+")
_HEADER_BYTES = 2**20  # least that a stream requests at a time
_CHUNK_BYTES = 2**24  # of a download; so large that the latency of a request does not matter
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def expand(path: str | os.PathLike[str]) -> str:
    """The path with `~` and `~user` replaced, as a shell does; an address stays as it is."""
    return os.path.expanduser(os.fspath(path))


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A new path beside `target`, for a file or a folder that is renamed to `target` at the end.

    Its name is hidden and unique: it replaces nobody's file, and `Folder` does not list it. After
    an error it is removed. Raises OSError for a full disk.
    """
    target = Path(expand(target))
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield partial
        os.replace(partial, target)
    except BaseException as error:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise OSError(f"the disk of {target} is full: {error.strerror}; make room") from error
        raise


@contextlib.contextmanager
def atomic_write(target: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write, which becomes `target` when it is whole and on the disk."""
    with atomic_path(target) as partial, open(partial, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """All of a file, on this machine or remote (`gs://`, `az://`, `https://`).

    Raises OSError if it can't be read, and InputError for another kind of address.
    """
    if not _is_remote(path):
        return Path(expand(path)).read_bytes()
    with _open_remote(str(path)) as file:
        return file.read()


def read_text(path: str | os.PathLike[str]) -> str:
    """As `read_bytes`, of a UTF-8 text, without a byte order mark. InputError for other bytes."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error


def read_json(path: str) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint. Raises MissingFileError or InputError."""
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise MissingFileError(f"{path} is not there; a checkpoint needs it") from None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} {what_it_is(data[:1000]) or f'is not JSON: {error}'}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} should contain a JSON object, not a {type(content).__name__}")
    return content


def write_json(target: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Writes a file that people also read, atomically."""
    with atomic_write(target) as file:
        file.write(f"{json.dumps(content, indent=2)}\n".encode())


def short_size(nbytes: float) -> str:
    """Bytes in decimal units: `2.5 GB`, `11.6 MB`."""
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 0.99995e9 else f"{nbytes / 1e6:.1f} MB"


def what_it_is(head: bytes) -> str | None:
    """What a file with these first 1000 bytes is instead of data; None if unknown.

    The text continues a message that has named the file.
    """
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((what for regex, what in _NOT_DATA.items() if re.match(regex, start)), None)


class Folder:
    """The files of a checkpoint folder, here or remote.

    `names` is sorted, without hidden files and folders. Raises MissingFileError for a folder that
    does not exist, PermissionError or another OSError for one that can't be read, and InputError
    for another kind of address.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = expand(path)
        self._is_remote = _is_remote(path)
        sizes = _list_remote(self.path) if self._is_remote else _list_local(self.path)
        self._sizes = {name: sizes[name] for name in sorted(sizes) if not name.startswith(".")}
        self.names = list(self._sizes)

    def where(self, name: str) -> str:
        """The whole path of a file, or its address."""
        if self._is_remote:
            return f"{self.path.removesuffix('/')}/{name}"
        return os.path.join(self.path, name)

    def size(self, name: str) -> int:
        """In bytes, when the folder was listed."""
        if name not in self._sizes:
            raise MissingFileError(f"{self.where(name)} is not there")
        return self._sizes[name]

    def open(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A seekable stream; of a remote file only what is read is downloaded."""
        where = self.where(name)
        return _open_remote(where) if self._is_remote else open(where, "rb")

    def read(self, name: str) -> bytes:
        return read_bytes(self.where(name))

    def local(self, name: str) -> Path:
        """The path on this machine: the file itself, or its current copy in `cache_root()`."""
        if self._is_remote:
            return _fetch(self.where(name), _cache_folder(self.path) / _quoted(name))
        return Path(self.path, name)


def _is_remote(path: str | os.PathLike[str]) -> bool:
    if "://" not in os.fspath(path):
        return False
    if not _STORES.match(os.fspath(path)):
        raise InputError(
            f"{path} can't be read; addresses are gs://BUCKET/..., az://ACCOUNT/CONTAINER/... and "
            "https://ACCOUNT.blob.core.windows.net/CONTAINER/...; download it and pass its path"
        )
    return True


def _list_local(path: str) -> dict[str, int]:
    try:
        with os.scandir(path) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        raise _no_folder(path, os.path.isfile(path)) from None


def _list_remote(path: str) -> dict[str, int]:
    with _errors_name(path):
        try:
            return {entry.name: entry.stat.size for entry in _store().scandir(path) if entry.stat}
        except FileNotFoundError:
            is_file = _store().exists(path.removesuffix("/"))
    raise _no_folder(path, is_file)


def _no_folder(path: str, is_file: bool) -> MissingFileError:
    what = "is a file" if is_file else "is not there"
    return MissingFileError(f"checkpoint folder {path} {what}; pass the folder that has it")


def _store() -> blobfile.Context:
    """blobfile with limits: its default is to retry for ever and to print on standard output.

    Ten retries take half a minute if the store refuses, two minutes if it does not answer. Access
    tokens are not stored: a stored "no login needed" would be used even after a login.
    """
    import blobfile

    def log(text: str) -> None:
        print(f"still trying: {text.partition(', request=')[0][:300]}", file=sys.stderr)

    return blobfile.create_context(
        retry_limit=10, retry_log_threshold=2, log_callback=log, save_access_token_to_disk=False
    )


@contextlib.contextmanager
def _errors_name(path: str) -> Iterator[None]:
    """Turns blobfile's errors into OSErrors of one line that name the path and a remedy."""
    import blobfile

    login = "gcloud auth application-default login" if path.startswith("gs:") else "az login"
    try:
        yield
    except blobfile.VersionMismatch as error:
        raise OSError(f"{path} changed while it was read; run it again") from error
    except blobfile.RequestFailure as error:
        status = error.response_status
        if status == 404:
            raise MissingFileError(f"{path} is not there") from error
        if status in (401, 403):
            raise PermissionError(
                f"{path}: its store refuses access ({status}); log in with `{login}`, "
                "or use an account that may read it"
            ) from error
        reason = error.message.splitlines()[0][:300]
        raise ConnectionError(
            f"{path}: its store did not answer ({reason}); check the network and the address, then "
            "run it again"
        ) from error
    except (blobfile.Error, RuntimeError) as error:  # mostly about credentials
        reason = str(error.args[0]).splitlines()[0][:300]
        raise OSError(f"{path} can't be read: {reason}; `{login}` may help") from error


@contextlib.contextmanager
def _open_remote(path: str) -> Iterator[BinaryIO]:
    """A seekable stream; only what is read is downloaded. All errors are `_errors_name`'s."""
    with _errors_name(path), _store().BlobFile(path, "rb", buffer_size=_HEADER_BYTES) as file:
        yield file


def cache_root() -> Path:
    """`$LLAMA_CACHE`, else `llama` in `$XDG_CACHE_HOME` or in `~/.cache`."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "llama")
    return Path(os.environ.get("LLAMA_CACHE") or default).expanduser()


def _cache_folder(path: str) -> Path:
    """The cache of a remote folder: `<cache>/gs/b/x%20y` for `gs://b/x y/`."""
    scheme, _, rest = path.removesuffix("/").partition("://")
    return cache_root().joinpath(scheme, *(_quoted(segment) for segment in rest.split("/")))


def _quoted(segment: str) -> str:
    """A different, safe file name for each text, also for `.`, `..` and the empty one."""
    if segment.strip(".") == "":
        return "%" + "%2E" * len(segment)
    return quote(segment, safe="")


def _fetch(path: str, target: Path) -> Path:
    """Downloads a remote file to `target` unless it is there; resumes an interrupted download.

    Of several processes that want the same file one downloads it and the others wait.
    """
    import filelock

    with _errors_name(path):
        remote = _store().stat(path)
    if _is_copy(target, remote):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(f"{target}.lock")
    try:
        held = lock.acquire(timeout=5)
    except filelock.Timeout:
        console.notice(f"waiting for another process that downloads {path}")
        held = lock.acquire()
    with held:
        if not _is_copy(target, remote):
            _download(path, remote, target)
    return target


def _is_copy(file: Path, remote: blobfile.Stat) -> bool:
    """By size and time, since a retrained model has the same size. In whole seconds, since not all
    stores and file systems keep fractions.
    """
    try:
        found = file.stat()
    except FileNotFoundError:
        return False
    return found.st_size == remote.size and int(found.st_mtime) == int(remote.mtime)


def _download(path: str, remote: blobfile.Stat, target: Path) -> None:
    """Appends to `<target>.<version>.part`, which is renamed when it is complete."""
    size = remote.size
    part = target.with_name(f"{target.name}.{size}-{int(remote.mtime)}.part")
    for old in target.parent.glob("*.part"):
        if old.name.rsplit(".", 2)[0] == target.name and old != part:
            old.unlink()
    target.unlink(missing_ok=True)  # another version: its disk space may be needed
    done = part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(target.parent).free
    if size - done > free:
        raise OSError(
            f"{path} needs {short_size(size - done)} in {target.parent}, where "
            f"{short_size(free)} are free; make room, or set LLAMA_CACHE to a folder elsewhere"
        )
    bar = console.progress(size, target.name, done=done, any_rank=True)
    with _open_remote(path) as source, open(part, "ab") as file, bar:
        source.seek(done)
        while chunk := source.read(min(_CHUNK_BYTES, size - done)):
            file.write(chunk)
            done += len(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())  # a renamed file is trusted, also after a power cut
    if done != size:
        raise OSError(f"{path} ended after {done:,} of {size:,} bytes; run it again to resume")
    with _errors_name(path):
        now = _store().stat(path)
    if (now.size, now.mtime) != (size, remote.mtime):
        part.unlink()
        raise OSError(f"{path} changed during the download; run it again")
    os.utime(part, (remote.mtime, remote.mtime))
    os.replace(part, target)
