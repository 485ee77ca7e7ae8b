"""Remote folders here are those of a blobfile that keeps its files in memory.

It has of the real one (3.x, read in its source) what `files.py` relies on: `create_context` with
its keywords gives `scandir`, `stat`, `exists` and `BlobFile`; `scandir` adds a slash to the path,
yields entries with `name` and `stat` (None for folders) and raises FileNotFoundError also for a
file; `stat` and `BlobFile` raise FileNotFoundError; what is opened is an `io.BufferedReader` over
a raw stream in which every `readinto` is a request for at most what is asked for, a stream that
ends early says nothing, and the errors of a request come out of `readinto`.
"""

import errno
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import types
import zipfile
from collections import Counter
from pathlib import Path

import blobfile
import filelock
import pytest
import torch

from llama import Llama, Tokenizer, console
from llama.checkpoint.opening import open_checkpoint
from llama.lora.adapter_files import write_adapter
from llama.storage import files
from llama.storage.files import Folder, atomic_path, atomic_write, read_bytes, what_it_is

BUCKET = "gs://bucket/models/tiny"
WEIGHTS = os.urandom(300_000)
TIME = 1_700_000_000.25


class RawBlob(io.RawIOBase):
    def __init__(self, store, path):
        self.store, self.path, self.position = store, path, 0
        store.open_streams.add(id(self))
        self.data = store.files[path][0]

    def readable(self):
        return True

    def seekable(self):
        return True

    def readinto(self, buffer):
        if self.store.ends_after is not None and self.position >= self.store.ends_after:
            if self.store.error:
                raise self.store.error
            return 0
        data = self.data[self.position : self.store.ends_after][: len(buffer)]
        buffer[: len(data)] = data
        self.position += len(data)
        self.store.fetched[self.path] += len(data)
        time.sleep(self.store.delay)
        return len(data)

    def seek(self, offset, whence=io.SEEK_SET):
        self.position = offset + (0, self.position, len(self.data))[whence]
        return self.position

    def tell(self):
        return self.position

    def close(self):
        self.store.open_streams.discard(id(self))
        super().close()


class Store:
    """A context of blobfile, over `files`: address to content and time."""

    def __init__(self):
        self.files = {
            f"{BUCKET}/weights.pth": (WEIGHTS, TIME),
            f"{BUCKET}/params.json": (b'{"dim": 64}', TIME),
            f"{BUCKET}/.cache": (b"hidden", TIME),
            f"{BUCKET}/original/old.pth": (b"old", TIME),
        }
        self.fetched, self.open_streams = Counter(), set()
        self.settings = {}
        self.ends_after = self.error = self.listing_error = None
        self.delay = 0

    def entry(self, name, stat):
        return blobfile.DirEntry(f"{BUCKET}/{name}", name, stat is None, stat is not None, stat)

    def scandir(self, path, shard_prefix_length=0):
        if self.listing_error:
            raise self.listing_error
        path = path.removesuffix("/") + "/"
        inside = [other.removeprefix(path) for other in self.files if other.startswith(path)]
        if not inside:
            raise FileNotFoundError(path)
        yield from (self.entry(name, self.stat(path + name)) for name in inside if "/" not in name)
        yield from (self.entry(name.split("/")[0], None) for name in inside if "/" in name)

    def exists(self, path):
        return path in self.files

    def stat(self, path):
        if path not in self.files:
            raise FileNotFoundError(f"No such file: '{path}'")
        data, mtime = self.files[path]
        return blobfile.Stat(len(data), mtime, mtime, None, None)

    def BlobFile(self, path, mode="r", buffer_size=2**23):
        assert mode == "rb"
        self.stat(path)
        return io.BufferedReader(RawBlob(self, path), buffer_size)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gs" / "bucket" / "models" / "tiny"


@pytest.fixture
def store(cache, monkeypatch):
    """What stands in for blobfile; chunks and headers are small, so that there are several."""
    fake = types.ModuleType("blobfile")
    for name in ("Error", "RequestFailure", "VersionMismatch"):
        setattr(fake, name, getattr(blobfile, name))
    context = Store()

    def create_context(**settings):
        inspect.signature(blobfile.create_context).bind(**settings)
        context.settings = settings
        return context

    fake.create_context = create_context
    monkeypatch.setitem(sys.modules, "blobfile", fake)
    monkeypatch.setattr(files, "_CHUNK_BYTES", 10_000)
    monkeypatch.setattr(files, "_HEADER_BYTES", 1_000)
    return context


def failure(status, message="unexpected status"):
    return blobfile.RequestFailure(message, "<Request>", status, None, None)


# Folders on this machine


@pytest.fixture
def here(tmp_path):
    folder = tmp_path / "here"
    (folder / "original").mkdir(parents=True)
    (folder / "weights.pth").write_bytes(WEIGHTS)
    (folder / "params.json").write_bytes(b'{"dim": 64}')
    (folder / ".hidden").touch()
    return folder


@pytest.mark.parametrize("kind", [str, Path])
def test_a_local_folder(here, kind):
    folder = Folder(kind(here))
    assert folder.path == str(here)
    assert folder.names == ["params.json", "weights.pth"]
    assert folder.where("params.json") == str(here / "params.json")
    assert folder.local("params.json") == here / "params.json"
    assert folder.size("weights.pth") == len(WEIGHTS)
    assert folder.read("params.json") == b'{"dim": 64}'
    with folder.open("weights.pth") as file:
        file.seek(-5, io.SEEK_END)
        assert file.read() == WEIGHTS[-5:]
    with pytest.raises(FileNotFoundError, match=r"here/tokenizer.model is not there"):
        folder.size("tokenizer.model")


def test_a_link_to_a_file_is_a_file_and_a_broken_one_is_not(here):
    (here / "linked.pth").symlink_to(here / "weights.pth")
    (here / "broken.pth").symlink_to(here / "nothing")
    assert Folder(here).names == ["linked.pth", "params.json", "weights.pth"]


def test_what_is_no_local_folder(here):
    with pytest.raises(FileNotFoundError, match=r"folder .*nowhere is not there; pass the folder"):
        Folder(here / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"folder .*params.json is a file; pass the folder"):
        Folder(here / "params.json")
    with pytest.raises(FileNotFoundError, match=r"folder .*x is not there; pass the folder"):
        Folder(here / "params.json" / "x")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is closed to root")
def test_a_closed_folder_is_named(here):
    here.chmod(0)
    with pytest.raises(PermissionError, match="here"):
        Folder(here)
    here.chmod(0o700)


def test_a_folder_that_may_not_be_listed_is_named(here, monkeypatch):
    def scandir(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="here"):
        Folder(here)


def test_read_bytes_of_a_local_file(here):
    assert read_bytes(str(here / "weights.pth")) == read_bytes(here / "weights.pth") == WEIGHTS
    with pytest.raises(FileNotFoundError):
        read_bytes(here / "nothing")
    with pytest.raises(IsADirectoryError):
        read_bytes(here)


def test_blobfile_is_imported_only_for_remote_paths(here):
    script = f"""
import sys, llama.storage.files
llama.storage.files.Folder({str(here)!r}).local("params.json")
assert not {{"blobfile", "filelock"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


# Remote folders


@pytest.mark.parametrize("path", [BUCKET, BUCKET + "/"])
def test_a_remote_folder(store, path):
    folder = Folder(path)
    assert folder.path == path
    assert folder.names == ["params.json", "weights.pth"]
    assert folder.where("params.json") == f"{BUCKET}/params.json"
    assert folder.size("weights.pth") == len(WEIGHTS)
    assert folder.read("params.json") == b'{"dim": 64}'
    assert read_bytes(f"{BUCKET}/params.json") == b'{"dim": 64}'
    assert not store.fetched["weights.pth"]


def test_what_is_no_remote_folder(store):
    with pytest.raises(FileNotFoundError, match=r"gs://bucket/other is not there; pass the folder"):
        Folder("gs://bucket/other")
    for path in (f"{BUCKET}/params.json", f"{BUCKET}/params.json/"):
        with pytest.raises(FileNotFoundError, match=r"params.json/? is a file; pass the folder"):
            Folder(path)


@pytest.mark.parametrize(
    "path", ["s3://bucket/x", "https://example.org/x", "az://account", "gs://"]
)
def test_other_addresses_are_refused(path):
    for use in (Folder, read_bytes):
        with pytest.raises(ValueError, match=r"gs://BUCKET.*download it"):
            use(path)


@pytest.mark.parametrize(
    "path", ["az://account/box", "https://account.blob.core.windows.net/box/x"]
)
def test_azure_addresses_are_remote(store, path):
    store.files[f"{path}/params.json"] = (b"{}", TIME)
    assert Folder(path).names == ["params.json"]


def test_a_stream_fetches_only_what_is_read(store):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("weights", WEIGHTS)
        packed.writestr("names", b"a b c")
    store.files[f"{BUCKET}/weights.pth"] = (archive.getvalue(), TIME)
    with Folder(BUCKET).open("weights.pth") as file, zipfile.ZipFile(file) as packed:
        assert packed.namelist() == ["weights", "names"]
        assert packed.read("names") == b"a b c"
    assert 0 < sum(store.fetched.values()) < 5_000
    store.fetched.clear()
    with Folder(BUCKET).open("weights.pth") as file:
        assert file.read(2) == b"PK"
    assert sum(store.fetched.values()) == 1_000


def test_a_stream_is_closed(store):
    folder = Folder(BUCKET)
    with folder.open("params.json"):
        assert store.open_streams
    assert not store.open_streams


def test_nothing_is_tried_for_ever_or_said_on_standard_output(store, capsys):
    Folder(BUCKET)
    assert store.settings["retry_limit"] in range(1, 20)
    assert not store.settings["save_access_token_to_disk"]
    store.settings["log_callback"]("error message=no route to host, request=<Request>, status=0")
    store.settings["log_callback"]("x" * 1000)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert (
        printed.err == f"still trying: error message=no route to host\nstill trying: {'x' * 300}\n"
    )


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (failure(401), PermissionError, "refuses access .401.; log in with `gcloud auth"),
        (failure(403), PermissionError, "refuses access .403."),
        (failure(404), FileNotFoundError, "is not there"),
        (failure(0, "Failed to resolve\nx"), ConnectionError, "Failed to resolve.; check the net"),
        (failure(503, "unexpected status 503"), ConnectionError, "503.*run it again"),
        (blobfile.Error("no credentials\n\nLog in"), OSError, "no credentials; `gcloud"),
        (RuntimeError("install azure-identity"), OSError, "install azure-identity"),
        (
            blobfile.VersionMismatch("etag mismatch", "<Request>", 412, None, None),
            OSError,
            "changed while it was read; run it again",
        ),
    ],
)
def test_errors_of_the_store_become_one_line_with_the_path(store, error, kind, text):
    folder = Folder(BUCKET)
    store.listing_error, store.error, store.ends_after = error, error, 0

    def stream():
        with folder.open("params.json") as file:
            file.read()

    uses = [
        lambda: Folder(BUCKET),
        lambda: folder.read("params.json"),
        stream,
        lambda: folder.local("params.json"),
    ]
    for use in uses:
        with pytest.raises(kind, match=text) as caught:
            use()
        assert str(caught.value).startswith(BUCKET)
        assert "\n" not in str(caught.value)


# The cache


def test_a_file_is_fetched_once(store, cache):
    path = Folder(BUCKET).local("weights.pth")
    assert path == cache / "weights.pth"
    assert path.read_bytes() == WEIGHTS
    assert Folder(BUCKET + "/").local("weights.pth") == path
    assert store.fetched == {f"{BUCKET}/weights.pth": len(WEIGHTS)}
    assert {file.name for file in cache.iterdir()} == {"weights.pth", "weights.pth.lock"}


def test_a_cache_that_may_only_be_read_serves(store, cache):
    path = Folder(BUCKET).local("weights.pth")
    (cache / "weights.pth.lock").unlink()
    assert Folder(BUCKET).local("weights.pth") == path
    assert [file.name for file in cache.iterdir()] == ["weights.pth"]


def test_an_empty_file_is_fetched(store):
    store.files[f"{BUCKET}/empty"] = (b"", TIME)
    assert Folder(BUCKET).local("empty").read_bytes() == b""


@pytest.mark.parametrize(
    ("data", "mtime"), [(WEIGHTS[::-1], TIME + 1), (WEIGHTS[::-1], TIME - 9), (WEIGHTS[1:], TIME)]
)
def test_a_changed_file_is_fetched_anew(store, data, mtime):
    Folder(BUCKET).local("weights.pth")
    store.files[f"{BUCKET}/weights.pth"] = (data, mtime)
    assert Folder(BUCKET).local("weights.pth").read_bytes() == data


def test_a_damaged_copy_is_replaced(store):
    path = Folder(BUCKET).local("weights.pth")
    os.truncate(path, 100)
    os.utime(path, (TIME, TIME))
    assert Folder(BUCKET).local("weights.pth").read_bytes() == WEIGHTS


def test_a_broken_fetch_goes_on_where_it_stopped(store, cache):
    store.ends_after, store.error = 120_000, failure(0, "Connection reset")
    with pytest.raises(ConnectionError, match=r"weights.pth.*Connection reset.*run it again"):
        Folder(BUCKET).local("weights.pth")
    assert not (cache / "weights.pth").exists()
    store.ends_after = None
    assert Folder(BUCKET).local("weights.pth").read_bytes() == WEIGHTS
    assert store.fetched[f"{BUCKET}/weights.pth"] == len(WEIGHTS)
    assert not list(cache.glob("*.part"))


def test_ctrl_c_keeps_what_has_come(store):
    store.ends_after, store.error = 120_000, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        Folder(BUCKET).local("weights.pth")
    store.ends_after = None
    assert Folder(BUCKET).local("weights.pth").read_bytes() == WEIGHTS
    assert store.fetched[f"{BUCKET}/weights.pth"] == len(WEIGHTS)


def test_a_short_stream_is_an_error(store):
    store.ends_after = 120_000
    with pytest.raises(
        OSError, match=r"tiny/weights.pth ended after 120,000 of 300,000 bytes; run"
    ):
        Folder(BUCKET).local("weights.pth")


def test_parts_of_another_version_are_not_continued_but_removed(store, cache):
    store.ends_after = 120_000
    with pytest.raises(OSError, match="ended after"):
        Folder(BUCKET).local("weights.pth")
    (cache / "weights.pth.old.7-7.part").touch()  # of a file `weights.pth.old`
    store.ends_after = None
    store.files[f"{BUCKET}/weights.pth"] = (WEIGHTS[::-1], TIME + 1)
    assert Folder(BUCKET).local("weights.pth").read_bytes() == WEIGHTS[::-1]
    assert [file.name for file in cache.glob("*.part")] == ["weights.pth.old.7-7.part"]


def test_a_file_that_changes_meanwhile_is_not_kept(store, cache, monkeypatch):
    def write(bar_of, total, *args, **kwargs):
        store.files[f"{BUCKET}/weights.pth"] = (WEIGHTS[::-1], TIME + 1)
        return bar_of(total, *args, **kwargs)

    bar = console.progress
    monkeypatch.setattr(console, "progress", lambda *args, **kwargs: write(bar, *args, **kwargs))
    with pytest.raises(OSError, match=r"weights.pth changed during the download; run it again"):
        Folder(BUCKET).local("weights.pth")
    assert [file.name for file in cache.iterdir()] == ["weights.pth.lock"]


def test_too_little_room_is_said_beforehand(store, cache, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    with pytest.raises(OSError, match=r"weights.pth needs 0.3 MB in .*tiny, where 0.2 MB are"):
        Folder(BUCKET).local("weights.pth")
    assert not store.fetched
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=300_000))
    assert Folder(BUCKET).local("weights.pth").read_bytes() == WEIGHTS


def test_an_old_copy_makes_room_for_the_new_one(store, cache, monkeypatch):
    path = Folder(BUCKET).local("weights.pth")
    store.files[f"{BUCKET}/weights.pth"] = (WEIGHTS, TIME + 1)
    usage = shutil.disk_usage("/")
    free = {True: 0, False: 300_000}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free[path.exists()]))
    assert Folder(BUCKET).local("weights.pth").read_bytes() == WEIGHTS


def test_whichever_rank_fetches_shows_a_bar_of_what_is_left(store, cache, monkeypatch):
    bars = []

    def progress(*args, **settings):
        bars.append((args, settings))
        return bar(*args, **settings)

    bar = console.progress
    monkeypatch.setattr(console, "progress", progress)
    cache.mkdir(parents=True)
    (cache / f"weights.pth.300000-{int(TIME)}.part").write_bytes(WEIGHTS[:1000])
    assert Folder(BUCKET).local("weights.pth").read_bytes() == WEIGHTS
    assert bars == [((300_000, "weights.pth"), {"done": 1000, "any_rank": True})]


def test_of_several_who_ask_one_fetches(store):
    store.delay = 0.01
    folder, found = Folder(BUCKET), []
    threads = [
        threading.Thread(target=lambda: found.append(folder.local("weights.pth").read_bytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [WEIGHTS] * 4
    assert store.fetched == {f"{BUCKET}/weights.pth": len(WEIGHTS)}


@pytest.fixture
def fetching_process(cache):
    """Another process that holds the lock of weights.pth until it is killed."""
    cache.mkdir(parents=True)
    script = f"""
import filelock, time
with filelock.FileLock({str(cache / "weights.pth.lock")!r}):
    print("held", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_who_waits_long_says_so_and_goes_on_when_the_other_is_killed(
    store, fetching_process, monkeypatch, capsys
):
    acquire = filelock.FileLock.acquire

    def impatient(lock, timeout=None):
        if timeout is None:
            threading.Timer(0.1, fetching_process.kill).start()
        return acquire(lock, timeout=timeout and 0.01)

    monkeypatch.setattr(filelock.FileLock, "acquire", impatient)
    assert Folder(BUCKET).local("weights.pth").read_bytes() == WEIGHTS
    line = f"waiting for another process that downloads {BUCKET}/weights.pth\n"
    assert capsys.readouterr().err == line


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMA_CACHE", "~/models")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files._cache_folder(BUCKET) == tmp_path / "home/models/gs/bucket/models/tiny"
    monkeypatch.setenv("LLAMA_CACHE", "")
    assert files._cache_folder(BUCKET) == tmp_path / "xdg/llama/gs/bucket/models/tiny"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files._cache_folder(BUCKET) == tmp_path / "home/.cache/llama/gs/bucket/models/tiny"


def test_every_remote_folder_has_its_own_place_inside_the_cache(cache, tmp_path):
    paths = "a/b a//b a/./b a/../b a/.../b a%2Fb a%b a/%/b a/%2E/b a/b%20c a:b az/b".split()
    paths = [f"gs://{path}" for path in [*paths, "a/b c"]] + ["az://a/b", "https://a/b"]
    places = {files._cache_folder(path) for path in paths}
    assert len(places) == len(paths)
    for place in places:
        assert Path(os.path.normpath(place)) == place
        assert place.is_relative_to(tmp_path / "cache")


@pytest.fixture
def remote_here(here):
    os.utime(here / "weights.pth", (TIME, TIME))
    return str(here / "weights.pth")


def test_fetching_with_the_real_blobfile(remote_here, tmp_path, monkeypatch):
    """blobfile opens local paths too, so this checks the one in memory against the real one."""
    target = tmp_path / "copy" / "weights.pth"
    target.parent.mkdir()
    part = target.with_name(f"weights.pth.{len(WEIGHTS)}-{int(TIME)}.part")
    part.write_bytes(b"x" * 1000)  # shows later whether it was continued
    assert files._fetch(remote_here, target) == target
    assert target.read_bytes() == b"x" * 1000 + WEIGHTS[1000:]
    assert int(target.stat().st_mtime) == int(TIME)
    os.utime(remote_here, (TIME + 5, TIME + 5))
    assert files._fetch(remote_here, target).read_bytes() == WEIGHTS
    monkeypatch.setattr(files, "_download", None)
    files._fetch(remote_here, target)
    with pytest.raises(FileNotFoundError, match="nothing"):
        files._fetch(str(tmp_path / "nothing"), target)


def test_streams_of_the_real_blobfile(remote_here):
    with files._open_remote(remote_here) as file:
        assert file.seek(-7, io.SEEK_END) == file.tell() == len(WEIGHTS) - 7
        assert file.read(3) == WEIGHTS[-7:-4]
        assert file.read() == WEIGHTS[-4:]
        assert file.seek(0) == 0
        assert file.read(len(WEIGHTS)) == WEIGHTS
    assert file.closed
    with pytest.raises(FileNotFoundError), files._open_remote(remote_here + "x"):
        pass


# Files that are not what they should be


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (b"", "is empty: download or copy it again"),
        (b" \n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (bytes(1000), "is all zeros"),
        (b"\n <!DOCTYPE html>", "is a web page, perhaps of a failed download: download or copy"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error>", "is a web page"),
        (b'{\n "error": {"code": 401}}', "is the error message of a server"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer.*`git lfs pull`"),
    ],
)
def test_what_a_file_is_instead(head, text):
    assert re.match(text, what_it_is(head))


@pytest.mark.parametrize(
    "head", [b'{"dim": 64}', b"PK\3\4", b"\0\0\0\1", b"IQ== 0\n", b"version 1"]
)
def test_what_may_be_right_is_not_explained(head):
    assert what_it_is(head) is None


def test_a_checkpoint_behind_an_address(store, cache):
    tiny, address = Path(__file__).parents[2] / "params" / "tiny", "gs://bucket/llamas/tiny"
    for path in tiny.iterdir():
        if path.is_file():
            store.files[f"{address}/{path.name}"] = (path.read_bytes(), TIME)
    assert open_checkpoint(address).parameters == open_checkpoint(tiny).parameters
    assert sum(store.fetched.values()) < 50_000  # headers
    assert not cache.parents[1].exists()
    remote, local = (Llama.build(folder, device="cpu") for folder in (address, tiny))
    weights = (tiny / "consolidated.00.pth").stat().st_size
    assert store.fetched[f"{address}/consolidated.00.pth"] > 0.9 * weights
    prompts = [[1, 2, 3]]
    assert remote.generate(prompts, 9, temperature=0) == local.generate(prompts, 9, temperature=0)
    before = store.fetched[f"{address}/consolidated.00.pth"]
    Llama.build(address, f"{address}/tokenizer.model", device="cpu")
    assert store.fetched[f"{address}/consolidated.00.pth"] < before + 50_000


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "notes.txt"
    target.write_text("old")
    with atomic_write(target) as file:
        file.write(b"new")
        file.flush()
        assert target.read_text() == "old"
        assert Folder(tmp_path).names == ["notes.txt"]  # what is being written is hidden
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()  # not a temporary file's 0600
    assert os.listdir(tmp_path) == ["notes.txt"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyboardInterrupt(), None),
        (OSError(errno.ENOSPC, "No space left"), r"the disk of .*notes.txt is full.*make room"),
    ],
)
def test_an_interrupted_write_leaves_the_old_file(
    error: BaseException, message: str | None, tmp_path: Path
) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "notes.txt") as file:
            file.write(b"ne")
            raise error

    (tmp_path / "notes.txt").write_text("old")
    with pytest.raises(type(error), match=message):
        write()
    assert os.listdir(tmp_path) == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "old"


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    def make(content: str) -> None:
        with atomic_path(tmp_path / "model") as partial:
            partial.mkdir()
            (partial / "params.json").write_text(content)
            json.loads(content)

    with pytest.raises(json.JSONDecodeError):
        make("{")
    assert os.listdir(tmp_path) == []
    make("{}")
    assert Folder(tmp_path / "model").names == ["params.json"]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CACHE", str(files.cache_root()))  # native kernels stay compiled
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_bytes(b"a")
    assert read_bytes("~/a.txt") == b"a"
    assert Folder("~").where("a.txt") == str(tmp_path / "a.txt")
    with atomic_write("~/b.txt") as file:
        file.write(b"b")
    assert (tmp_path / "b.txt").read_bytes() == b"b"
    tiny = Path(__file__).parents[2] / "params" / "tiny"
    (tmp_path / "tiny").symlink_to(tiny)
    args = open_checkpoint("~/tiny").args
    zeros = torch.zeros(2, args.dim)
    write_adapter("~/lora", {"layers.0.attention.wq": (zeros, zeros.T)}, 1.0, args, "~/tiny")
    Llama.build("~/tiny", "~/tiny/tokenizer.model", adapter="~/lora", device="cpu")
    assert Tokenizer("~/tiny/tokenizer.model").model_path == f"{tmp_path}/tiny/tokenizer.model"
