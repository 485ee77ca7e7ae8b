"""Pulling a model: from a name to a folder that has all of its files, with the right bytes.

    for event in pull("llama3.2:1b"):
        print(event.status, event.completed, event.total)

What the hub lists gives a version its folder, so that a pull that was killed finds its parts again
and never mixes two revisions. First come the files that describe the model: what this package can't
run is refused before its weights are downloaded. Then several files at a time are downloaded, or
taken from a copy on this machine whose checksum is right. The record comes last.

The caller gets events and may stop at any of them (`close()`): the downloads end, and what is here
stays.
"""

import contextlib
import dataclasses
import hashlib
import queue
import re
import shutil
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llama.checkpoint.checksums import write_checksum_list
from llama.checkpoint.download import Hashes, RemoteFile, download
from llama.checkpoint.hub_session import CancelledError, HubSession
from llama.checkpoint.hubs import Hub, HuggingFace, Listing, ModelScope
from llama.checkpoint.huggingface_config import read_config
from llama.checkpoint.meta_layout import parse_params
from llama.checkpoint.meta_urls import MetaUrl
from llama.errors import InputError
from llama.storage import pulled
from llama.storage.files import read_json, short_size
from llama.storage.model_names import RELEASED, ReleasedModel, model_name, released
from llama.storage.pulled import BusyError, PulledFile, PulledModel

_FILES_AT_A_TIME = 4
_SECONDS_BETWEEN_NEWS = 0.1
_SHAPES = ("config.json", "params.json", "adapter_config.json")
STAGES = ("pulling manifest", "verifying sha256 digest", "writing manifest", "success")
_REPOSITORY = re.compile(r"(hf|ms):(?!.*\.\.)(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")


@dataclasses.dataclass(frozen=True)
class PullEvent:
    """What a pull does, in the words of Ollama's API, and how far it is.

    status      one of STAGES; pulling <digest>; or a sentence about a retry or a wait
    digest      of a file: sha256:... (sha1: of a small file on Hugging Face, md5: at Meta)
    total       bytes of the file; `completed` of them are here
    file        its name
    overall     of all files: how many bytes are here, and how many there will be
    """

    status: str
    digest: str | None = None
    total: int | None = None
    completed: int | None = None
    file: str | None = None
    overall: tuple[int, int] | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields of a line of Ollama's `/api/pull`."""
        names = ("status", "digest", "total", "completed")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class _Source(NamedTuple):
    """`name` is what the model will be called here."""

    name: str
    hub: Literal["hf", "ms", "meta"]
    repo: str  # of Meta the signed URL
    revision: str | None
    model: ReleasedModel | None


def pull(
    name: str, *, model: str | None = None, hub: str = "hf", mirror: str | None = None
) -> Generator[PullEvent, None, None]:
    """Pulls a model and yields what happens; the last event is `success`.

    `name` is a short name, hf:owner/repository, ms:owner/repository, either with @revision, or a
    signed URL of Meta, with which `model` is the short name of the model. `hub` (hf or ms) is where
    short names are looked up, and `mirror` is the address of a mirror of the hub. A model that is
    here already is compared with the hub; files that are the same are kept.

    Raises InputError or MissingFileError for what can't be pulled, PermissionError without access,
    ConnectionError without an answer, and OSError for wrong bytes and a full disk. What is here by
    then is kept; the same call continues.
    """
    source = _source(name, model, hub)
    yield PullEvent(STAGES[0])
    notices: deque[str] = deque()
    with HubSession(notices.append) as session, contextlib.ExitStack() as held:
        where = _hub(session, source, mirror)
        listings: list[Listing] = []
        yield from _in_threads(session, [lambda: listings.append(where.listing())], notices)
        listing = listings[0]
        while True:
            try:
                held.enter_context(pulled.locked(source.name, timeout=1))
                break
            except BusyError:
                yield PullEvent(f"waiting for another process that pulls {source.name}")
        folder = pulled.folder_of_name(source.name) / _version(listing)
        folder.mkdir(parents=True, exist_ok=True)
        work = _Work(session, where, folder, notices, sum(file.size for file in listing.files))
        yield from work.run([file for file in listing.files if file.name in _SHAPES])
        try:
            _check_shape(folder, source.name)
        except InputError:
            if {path.name for path in folder.iterdir()} <= {*_SHAPES}:
                shutil.rmtree(folder)
                with contextlib.suppress(OSError):  # there is another version
                    folder.parent.rmdir()
            raise
        others = [file for file in listing.files if file.name not in _SHAPES]
        work.check_space(others)
        yield from work.run(others)
        yield PullEvent(STAGES[1])
        yield PullEvent(STAGES[2])
        files = [PulledFile(f.name, f.size, work.sha256[f.name]) for f in listing.files]
        write_checksum_list(folder, work.sha256)
        now = datetime.now(UTC).replace(microsecond=0)
        origin = listing.source, listing.revision, listing.license
        pulled.write_record(PulledModel(source.name, folder, *origin, now, tuple(files)))
    yield PullEvent(STAGES[3])


def _source(name: str, model: str | None, hub: str) -> _Source:
    if hub not in ("hf", "ms"):
        raise InputError(f"hub is {hub!r}; it is hf (Hugging Face) or ms (ModelScope)")
    if "://" in name and ("*" in name or "llamameta.net" in name):
        if name.count("*") != 1:
            raise InputError(
                "a signed URL of Meta has one *, for the path of a file: pass it as the mail has it"
            )
        short = released(model or "")
        if short is None:
            raise InputError(
                "of which model? Give its short name with the signed URL: --model NAME, one of "
                f"{', '.join(RELEASED)}"
            )
        return _Source(short.name, "meta", name, None, short)
    if model is not None:
        raise InputError(f"--model belongs to a signed URL of Meta, not to {name}")
    name = model_name(name)
    if short := released(name):
        repo = short.modelscope if hub == "ms" else short.repo
        return _Source(name, "ms" if hub == "ms" else "hf", repo, None, short)
    if match := _REPOSITORY.fullmatch(name):
        kind, repo, revision = match.groups()
        return _Source(name, "ms" if kind == "ms" else "hf", repo, revision, None)
    if name == "tiny":
        raise InputError(
            "tiny is bundled with this package, in params/tiny; there is no hub for it"
        )
    also = (
        f": did you mean hf:{name} or ms:{name}?" if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else ""
    )
    raise InputError(
        f"{name} is not a model that can be pulled{also or pulled.did_you_mean(name)}; give a name "
        "that `llama list --aliases` shows, hf:owner/repository (Hugging Face) or "
        "ms:owner/repository (ModelScope)"
    )


def _hub(session: HubSession, source: _Source, mirror: str | None) -> Hub:
    if source.hub == "meta":
        assert source.model is not None
        if mirror:
            raise InputError("a signed URL is an address of its own; leave --mirror out")
        return MetaUrl(session, source.repo, source.model)
    kind = HuggingFace if source.hub == "hf" else ModelScope
    revision = {"revision": source.revision} if source.revision else {}
    return kind(session, source.repo, endpoint=mirror, **revision)


def _version(listing: Listing) -> str:
    """A name for these files, which follows from their sizes and checksums."""
    lines = sorted(f"{file.name} {file.size} {file.checksum}" for file in listing.files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _check_shape(folder: Path, name: str) -> None:
    """Raises InputError for a model that this package does not run."""
    config, params = folder / "config.json", folder / "params.json"
    if config.exists():
        read_config(read_json(str(config)), f"config.json of {name}")
    elif params.exists():
        parse_params(read_json(str(params)), f"params.json of {name}")


class _Work:
    """The files of one version, and the threads that fetch them. `sha256` is of those here."""

    def __init__(
        self, session: HubSession, hub: Hub, folder: Path, notices: deque[str], total: int
    ) -> None:
        self._total = total
        self._session = session
        self._hub = hub
        self._folder = folder
        self._notices = notices
        self._done: dict[str, int] = {}
        self.sha256: dict[str, str] = {}

    def check_space(self, files: list[RemoteFile]) -> None:
        """Raises OSError if what is still to be downloaded does not fit on the disk."""
        needed = 0
        for file in files:
            target, part = self._folder / file.name, self._folder / f"{file.name}.part"
            if not target.exists() and not self._copies(file):
                needed += file.size - (min(part.stat().st_size, file.size) if part.exists() else 0)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise OSError(
                f"{short_size(needed)} are needed in {pulled.models_root()}, where "
                f"{short_size(free)} are free; make room, or set LLAMA_MODELS to a folder elsewhere"
            )

    def run(self, files: list[RemoteFile]) -> Iterator[PullEvent]:
        """Fetches files, several at a time; the first failure ends all of them."""
        waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        for file in sorted(files, key=lambda file: file.size):
            waiting.put(file)
        shown: dict[str, int] = {}

        def fetch_all() -> None:
            with contextlib.suppress(queue.Empty):
                while True:
                    file = waiting.get_nowait()
                    self.sha256[file.name] = self._fetch(file)
                    self._done[file.name] = file.size

        def news() -> Iterator[PullEvent]:
            for file in files:
                done = self._done.get(file.name)
                if done is not None and done != shown.get(file.name):
                    shown[file.name] = done
                    kind, digest = file.checksum
                    digest = f"{'sha1' if kind == 'git' else kind}:{digest}"
                    overall = sum(self._done.values()), self._total
                    status = f"pulling {digest}"
                    yield PullEvent(status, digest, file.size, done, file.name, overall)

        functions = [fetch_all] * min(_FILES_AT_A_TIME, len(files))
        yield from _in_threads(self._session, functions, self._notices, news)

    def _fetch(self, file: RemoteFile) -> str:
        """Gets one file; returns its sha256."""

        def report(done: int) -> None:
            self._done[file.name] = done

        report(0)
        target = self._folder / file.name
        if target.exists() and target.stat().st_size == file.size:
            kind, digest = file.checksum  # which was right when the file got its name
            return digest if kind == "sha256" else self._hash(target, file, report).sha256
        target.unlink(missing_ok=True)  # changed since, or a link to what is gone
        for copy, take in self._copies(file):
            hashes = self._hash(copy, file, report)
            if hashes.problem is None:
                take(copy, target)
                return hashes.sha256
            self._session.notice(f"{copy} {hashes.problem}; it is downloaded")
        arguments = self._folder, self._hub.refuse, report
        return download(self._session, file, self._hub.headers, *arguments)

    def _hash(self, path: Path, file: RemoteFile, report: Callable[[int], None]) -> Hashes:
        def read(done: int) -> None:
            self._session.check()
            report(done)

        hashes = Hashes(file)
        hashes.read(path, read)
        return hashes

    def _copies(self, file: RemoteFile) -> list[tuple[Path, Callable[[Path, Path], None]]]:
        """Files here that should be the same one, and how each is taken.

        Of another pulled model it becomes a second name. In the cache of another program it stays
        where it is and is linked to, so that no disk space stays taken when that cache is cleared.
        """
        kind, digest = file.checksum
        found: list[tuple[Path, Callable[[Path, Path], None]]] = []
        for model in pulled.pulled_models() if kind == "sha256" else ():
            for other in model.files:
                if other.sha256 == digest and (model.folder / other.name).is_file():
                    found.append((model.folder / other.name, pulled.link_or_copy))
        for path in self._hub.local_copies(file):
            found.append((path, lambda path, target: target.symlink_to(path.resolve())))
        return found


def _in_threads(
    session: HubSession,
    functions: Sequence[Callable[[], None]],
    notices: deque[str],
    news: Callable[[], Iterator[PullEvent]] = lambda: iter(()),
) -> Iterator[PullEvent]:
    """Runs each function in a thread and yields notices and news; the first failure ends all."""
    failures: deque[BaseException] = deque()

    def guard(function: Callable[[], None]) -> None:
        try:
            function()
        except CancelledError:
            pass
        except BaseException as error:  # raised below, in the caller's thread
            failures.append(error)
            session.cancel()

    # Daemons: a thread that waits for an answer keeps no process alive that is to end.
    threads = [threading.Thread(target=guard, args=(f,), daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    try:
        while True:
            for thread in threads:
                thread.join(_SECONDS_BETWEEN_NEWS / len(threads))
            ended = not any(thread.is_alive() for thread in threads)
            while notices:
                yield PullEvent(notices.popleft())
            yield from news()
            if ended:
                break
    finally:
        if any(thread.is_alive() for thread in threads):
            session.cancel()
            for thread in threads:
                thread.join(2)  # one that waits for an answer writes nothing when it comes
    if failures:
        raise failures[0]
