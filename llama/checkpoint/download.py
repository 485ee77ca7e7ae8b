"""One file from a hub: resumed where it stopped, checked while it is written.

    sha256 = download(session, file, headers, folder, refuse, report)

The bytes go to `<name>.part`, which is renamed when its length and its checksum are the listed
ones. A part that is there, of a process that was killed, is read and continued; the folder's name
follows from the checksums (`pulling.py`), so a part always belongs to the listed bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llama.checkpoint.hub_session import HubSession, Retries
from llama.storage.files import DISK_FULL

if TYPE_CHECKING:
    import httpx

_BLOCK_BYTES = 2**20  # of a part that is read again


@dataclass(frozen=True)
class RemoteFile:
    """A file of a listing.

    name      in the folder here
    checksum  its kind (sha256, md5, or git: git's sha1 of a blob) and its digest in hexadecimal
    """

    name: str
    size: int
    checksum: tuple[str, str]
    url: str


class Hashes:
    """The sha256 of a file's bytes, and its listed checksum where that is of another kind."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        kind = file.checksum[0]
        self._listed = self._sha256
        if kind == "md5":
            self._listed = hashlib.md5(usedforsecurity=False)
        elif kind == "git":
            header = f"blob {file.size}\0".encode()
            self._listed = hashlib.sha1(header, usedforsecurity=False)

    def update(self, block: bytes) -> None:
        self._sha256.update(block)
        if self._listed is not self._sha256:
            self._listed.update(block)

    def read(self, path: Path, report: Callable[[int], None] = lambda done: None) -> int:
        """Adds all of a file's bytes; `report` gets how many there were so far. Returns them."""
        done = 0
        with open(path, "rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                self.update(block)
                done += len(block)
                report(done)
        return done

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def problem(self) -> str | None:
        """What is wrong with the bytes; None if the checksum is the listed one."""
        (kind, listed), found = self._file.checksum, self._listed.hexdigest()
        if found == listed:
            return None
        kind = "git sha1" if kind == "git" else kind
        return f"has {kind} {found}, but {listed} is listed"


def download(
    session: HubSession,
    file: RemoteFile,
    headers: Mapping[str, str],
    folder: Path,
    refuse: Callable[[httpx.Response], Exception],
    report: Callable[[int], None],
) -> str:
    """Downloads a file into a folder, or the rest of it; returns its sha256.

    `refuse` makes the exception for a status that is an error, and `report` gets the number of
    bytes that are here. Raises OSError for wrong bytes, a wrong length, a full disk, or no answer.
    """
    part = folder / f"{file.name}.part"
    hashes, done = Hashes(file), 0
    if part.exists() and part.stat().st_size <= file.size:
        done = hashes.read(part, report)
    retries, most = Retries(session, f"{file.name} from {urlsplit(file.url).hostname}"), done
    while done < file.size or not part.exists():
        with (
            retries.after_failure(),
            session.stream(file.url, headers, retries, done) as response,
            _names_full_disk(folder),
        ):
            if done and response.status_code == 416:  # it has no bytes after `done`
                part.unlink()
                hashes, done = Hashes(file), 0
                continue
            if response.is_error:
                raise refuse(response)
            if response.status_code != 206:  # the whole file, whatever was asked for
                hashes, done = Hashes(file), 0
            _check_range(response, done, file, part)
            with open(part, "ab" if done else "wb") as stream:
                for block in response.iter_raw():
                    session.check()
                    done += len(block)
                    _check_length(done <= file.size, file, f"at least {done:,}", part)
                    hashes.update(block)
                    stream.write(block)
                    report(done)
            if done < file.size:
                retries.wait(f"the answer ends after {done:,} of {file.size:,} bytes")
        if done > most:
            retries.start_over()
            most = done
    if problem := hashes.problem:
        part.unlink()
        raise OSError(
            f"{file.name} {problem}; it was removed. The same command downloads it again; if that "
            "does not help, use a mirror (--mirror) or another hub"
        )
    with _names_full_disk(folder), open(part, "rb") as stream:
        os.fsync(stream.fileno())  # a renamed file is trusted, also after a power cut
    os.replace(part, folder / file.name)
    return hashes.sha256


def _check_range(response: httpx.Response, start: int, file: RemoteFile, part: Path) -> None:
    """Raises OSError unless the answer has the bytes from `start` to the end of the listed file."""
    length = response.headers.get("Content-Length", "")
    if response.status_code == 206:
        length = response.headers.get("Content-Range", "").rpartition("/")[2]
        begin = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if begin != str(start):
            part.unlink(missing_ok=True)
            raise OSError(
                f"{file.name}: its server answers with {response.headers.get('Content-Range')} "
                f"when asked for what follows byte {start}; the same command begins again"
            )
    if length.isdecimal():
        _check_length(int(length) == file.size, file, f"{int(length):,}", part)


def _check_length(is_right: bool, file: RemoteFile, found: str, part: Path) -> None:
    if not is_right:
        part.unlink(missing_ok=True)
        raise OSError(
            f"{file.name}: the hub lists {file.size:,} bytes, but its server sends {found}; it "
            "was removed. Try again later, or use a mirror (--mirror) or another hub"
        )


@contextlib.contextmanager
def _names_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise OSError(
            f"the disk of {folder} is full: {error.strerror}; what is here is kept: make room, and "
            "the same command continues"
        ) from error
