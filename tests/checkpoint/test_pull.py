"""`llama pull` against a stand-in for the hubs: what goes well, and all that can go wrong."""

import base64
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import tqdm
from hub_server import (
    Body,
    Cut,
    Hang,
    HubServer,
    IgnoreRange,
    Status,
    git_sha1,
    sha256,
)

from llama import console
from llama.checkpoint import download, hub_session, model_commands
from llama.checkpoint.convert import convert
from llama.checkpoint.opening import open_checkpoint
from llama.checkpoint.pulling import PullEvent, pull
from llama.errors import InputError, MissingFileError
from llama.storage import pulled

ROOT = Path(__file__).parents[2]
REPO = "meta-llama/Llama-3.2-1B-Instruct"
WEIGHTS = "model-00001-of-00002.safetensors"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def files(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a repository holds: a model in Hugging Face's layout and much that is not wanted."""
    folder = tmp_path_factory.mktemp("repository") / "hf"
    convert(str(checkpoint), str(folder), to="hf", shards=2)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    del found["checksums.sha256"]
    unwanted = ("README.md", "picture.png", "original/params.json", "pytorch_model.bin")
    found |= {name: b"unwanted" for name in (*unwanted, "original/consolidated.00.pth")}
    return found | {"LICENSE.txt": b"A license", ".gitattributes": b"*"}


@pytest.fixture
def hub(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """The stand-in for both hubs with one repository, an empty store, and no waits."""
    for name in [name for name in os.environ if name.startswith(("HF_", "MODELSCOPE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LLAMA_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setattr(hub_session, "DELAYS", (0,) * 5)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
        server.models[REPO] = dict(files)
        server.models["LLM-Research/Llama-3.2-1B-Instruct"] = dict(files)
        yield server


def part_of(name: str) -> Path:
    return next(pulled.folder_of_name("llama3.2:1b").glob(f"*/{name}.part"))


def is_whole(name: str, files: dict[str, bytes]) -> bool:
    """Whether a pulled model has all wanted files, no others, with the right bytes."""
    model = pulled.find(name)
    assert model is not None
    wanted = {n for n in files if re.fullmatch(r"(model|config|gener|token|LICENSE).*", n)}
    assert {file.name for file in model.files} == wanted
    assert all((model.folder / n).read_bytes() == files[n] for n in wanted)
    assert all(file.sha256 == sha256(files[file.name]) for file in model.files)
    assert {p.name for p in model.folder.iterdir()} == wanted | {"checksums.sha256"}
    return [p.name for p in model.folder.parent.iterdir() if p.is_dir()] == [model.folder.name]


@pytest.mark.parametrize("name", ["llama3.2:1b", f"hf:{REPO}", f"ms:{REPO}"])
def test_a_pull(name: str, hub: HubServer, files: dict[str, bytes], run_command: Command) -> None:
    code, out, err = run_command("pull", name)
    assert (code, err) == (0, "")
    assert re.fullmatch(rf"{name}: \d+ files, 0.\d MB\n", out)
    assert is_whole(name, files)
    model = pulled.find(name)
    assert model is not None
    assert model.source == (name if ":" in name[:3] else f"hf:{REPO}")
    assert (model.revision, model.license) == (hub.commit(REPO), "llama3.2")
    assert open_checkpoint(name).parameters > 0
    code, out, _ = run_command("verify", name)
    assert code == 0
    assert "sha256 matches checksums.sha256" in out
    assert "no checksum of" not in out


def test_a_short_name_on_modelscope(hub: HubServer, files: dict[str, bytes]) -> None:
    list(pull("llama3.2:1b", hub="ms"))
    assert is_whole("llama3.2:1b", files)
    model = pulled.find("llama3.2:1b")
    assert model is not None
    assert model.source == "ms:LLM-Research/Llama-3.2-1B-Instruct"


def test_a_second_pull_downloads_nothing(hub: HubServer) -> None:
    list(pull("llama3.2:1b"))
    hub.requests.clear()
    list(pull("llama3.2:1b"))
    assert all("/api/" in path for _, path, _ in hub.requests)


def test_the_same_files_under_another_name_are_not_downloaded(
    hub: HubServer, files: dict[str, bytes]
) -> None:
    list(pull("llama3.2:1b"))
    hub.requests.clear()
    list(pull(f"hf:{REPO}"))
    assert is_whole(f"hf:{REPO}", files)
    assert not hub.asked_for(WEIGHTS)


def test_events_are_those_of_ollama(hub: HubServer, files: dict[str, bytes]) -> None:
    events = list(pull("llama3.2:1b"))
    lines = [event.as_json() for event in events]
    assert lines[0] == {"status": "pulling manifest"}
    stages = ["verifying sha256 digest", "writing manifest", "success"]
    assert [line["status"] for line in lines[-3:]] == stages
    digest, size = f"sha256:{sha256(files[WEIGHTS])}", len(files[WEIGHTS])
    last = {"status": f"pulling {digest}", "digest": digest, "total": size, "completed": size}
    assert last in lines
    assert all(set(line) <= set(last) for line in lines)
    assert (
        events[-4].overall == (sum(m.size for m in pulled.pulled_models() if m.name != "tiny"),) * 2
    )


def test_a_new_revision_takes_what_is_the_same(hub: HubServer, files: dict[str, bytes]) -> None:
    list(pull("llama3.2:1b"))
    before = pulled.find("llama3.2:1b")
    changed = files | {"generation_config.json": b'{"temperature": 0.5}'}
    hub.models[REPO] = changed
    hub.requests.clear()
    list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", changed)
    assert not hub.asked_for(WEIGHTS)
    assert before is not None
    assert not before.folder.exists()


def test_a_revision_by_name(hub: HubServer, files: dict[str, bytes]) -> None:
    name = f"hf:{REPO}@{hub.commit(REPO)}"
    list(pull(name))
    assert is_whole(name, files)
    with pytest.raises(MissingFileError, match=f"{REPO} has no revision 'v9'"):
        list(pull(f"hf:{REPO}@v9"))


# Layouts


def test_metas_layout_from_a_hub(hub: HubServer, checkpoint: Path) -> None:
    names = ("params.json", "tokenizer.model", "consolidated.00.pth")
    shards = {name: (checkpoint / name).read_bytes() for name in names}
    hub.models["a/plain"] = shards | {"README.md": b"x"}
    hub.models["a/original"] = {f"original/{name}": data for name, data in shards.items()}
    for repo in ("hf:a/plain", "hf:a/original"):
        list(pull(repo))
        assert open_checkpoint(repo).layout == "meta"


def test_a_single_file_and_bin_files(hub: HubServer, files: dict[str, bytes]) -> None:
    small = {name: data for name, data in files.items() if name.endswith(".json")}
    hub.models["a/whole"] = small | {"model.safetensors": b"1", WEIGHTS: b"2"}
    hub.models["a/bin"] = small | {"pytorch_model.bin": b"1", "tf_model.h5": b"2"}
    for repo, weights in (("hf:a/whole", "model.safetensors"), ("hf:a/bin", "pytorch_model.bin")):
        list(pull(repo))
        model = pulled.find(repo)
        assert model is not None
        found = {file.name for file in model.files}
        assert weights in found
        assert not {WEIGHTS, "model.safetensors.index.json", "tf_model.h5"} & found


def test_an_adapter(hub: HubServer, run_command: Command) -> None:
    config = json.dumps({"peft_type": "LORA", "r": 8}).encode()
    hub.models["a/lora"] = {"adapter_config.json": config, "adapter_model.safetensors": b"12345"}
    assert run_command("pull", "hf:a/lora")[:2] == (0, "hf:a/lora: 2 files, 0.0 MB\n")
    code, out, _ = run_command("show", "hf:a/lora")
    assert code == 0
    assert "hf:a/lora: adapter" in out


def test_weights_of_other_programs(hub: HubServer) -> None:
    hub.models["a/gguf"] = {"README.md": b"x", "model-Q4_K_M.gguf": b"x"}
    message = r"a/gguf has no weights that this program reads.* \(it holds model-Q4_K_M.gguf"
    with pytest.raises(InputError, match=message):
        list(pull("hf:a/gguf"))


def test_other_models_are_refused_before_their_weights(
    hub: HubServer, files: dict[str, bytes]
) -> None:
    config = json.loads(files["config.json"]) | {"model_type": "mixtral"}
    hub.models["a/mixtral"] = files | {"config.json": json.dumps(config).encode()}
    with pytest.raises(InputError, match="mixtral"):
        list(pull("hf:a/mixtral"))
    assert not hub.asked_for(WEIGHTS)
    assert pulled.unfinished_pulls() == {}


def test_what_is_here_stays_when_a_new_revision_is_refused(
    hub: HubServer, files: dict[str, bytes]
) -> None:
    list(pull("llama3.2:1b"))
    config = json.loads(files["config.json"]) | {"model_type": "mixtral"}
    hub.models[REPO] = files | {"config.json": json.dumps(config).encode()}
    with pytest.raises(InputError, match="mixtral"):
        list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)


def test_what_is_here_stays_when_it_is_not_understood_any_more(
    hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(pull("llama3.2:1b"))

    def refuse(*_: object) -> None:
        raise InputError("of a newer version")

    monkeypatch.setattr("llama.checkpoint.pulling.read_config", refuse)
    with pytest.raises(InputError, match="of a newer version"):
        list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)


# Connections


def test_a_cut_connection_is_resumed(hub: HubServer, files: dict[str, bytes]) -> None:
    hub.faults[WEIGHTS] = [Cut(1000), Cut(500), Cut(0)]
    events = list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)
    ranges = [headers.get("Range") for headers in hub.asked_for(WEIGHTS)]
    assert ranges == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-"]
    assert sum("again in 0 s" in event.status for event in events) == 3


@pytest.mark.parametrize("fault", [Status(429), Status(500), Status(503), Cut(10)])
def test_a_few_failures_are_retried(fault: object, hub: HubServer, files: dict[str, bytes]) -> None:
    hub.faults[WEIGHTS] = [fault] * 5
    hub.faults["config.json"] = [fault] * 2
    list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)


def test_many_failures_end_the_pull(hub: HubServer, files: dict[str, bytes]) -> None:
    hub.faults[WEIGHTS] = [Cut(1000)] + [Status(503)] * 6
    with pytest.raises(
        ConnectionError, match=rf"{WEIGHTS} from .*: .* 503 .*, 6 times; check the network"
    ):
        list(pull("llama3.2:1b"))
    assert part_of(WEIGHTS).read_bytes() == files[WEIGHTS][:1000]
    list(pull("llama3.2:1b"))
    assert hub.asked_for(WEIGHTS)[-1]["Range"] == "bytes=1000-"
    assert is_whole("llama3.2:1b", files)


def test_no_progress_ends_the_pull_although_bytes_arrive(hub: HubServer) -> None:
    hub.faults[WEIGHTS] = [Cut(1000)] * 2 + [_CutWhole(500)] * 20
    with pytest.raises(ConnectionError, match="6 times"):
        list(pull("llama3.2:1b"))


class _CutWhole(IgnoreRange, Cut):
    """A server that does not resume, and cuts."""


def test_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(
        threading.Event, "wait", lambda self, timeout=None: bool(waited.append(timeout))
    )
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    session = hub_session.HubSession(lambda line: None)
    for header, seconds in (("7", 7), (date, 100), ("soon", 1), (None, 1)):
        hub_session.Retries(session, "x").wait("reason", hub_session._seconds(header))
        assert waited.pop() == pytest.approx(seconds, abs=2)
    with pytest.raises(ConnectionError, match="asks to wait 4000 s; the same command continues"):
        hub_session.Retries(session, "x").wait("reason", 4000)


def test_a_server_that_asks_to_wait(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float]] = []
    monkeypatch.setattr(
        hub_session.Retries, "wait", lambda self, reason, seconds=0: asked.append((reason, seconds))
    )
    hub.faults[WEIGHTS] = [Status(429, retry_after="9")]
    list(pull("llama3.2:1b"))
    assert asked == [("its server answers 429 Too Many Requests", 9)]


def test_a_server_without_ranges_begins_again(hub: HubServer, files: dict[str, bytes]) -> None:
    hub.faults[WEIGHTS] = [Cut(1000), IgnoreRange()]
    list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)


def test_no_server(hub: HubServer, monkeypatch: pytest.MonkeyPatch, run_command: Command) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, out, err = run_command("pull", "llama3.2:1b")
    assert (code, out) == (1, "")
    assert "again in 0 s" in err
    assert "6 times; check the network, or use a mirror (--mirror)" in err


def test_an_address_that_is_none(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"hf-mirror.com is no address of a hub: it begins with"):
        list(pull("llama3.2:1b", mirror="hf-mirror.com"))


@pytest.mark.parametrize("name", ["hf:a/b", "ms:a/b"])
@pytest.mark.parametrize("body", ["<!DOCTYPE html><p>Log in</p>", "[1]", "{}", '{"Data": 1}'])
def test_an_answer_that_is_no_hubs(
    name: str, body: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(self: object, url: str, *_: object) -> httpx.Response:
        return httpx.Response(200, text=body, request=httpx.Request("GET", url))

    monkeypatch.setattr(hub_session.HubSession, "get", get)
    what = "is a web page" if "html" in body else "is not a hub's"
    with pytest.raises(ConnectionError, match=f"the answer of http://127.*/models/a/b.* {what}"):
        list(pull(name))


@pytest.mark.parametrize("digest", ["../../etc/passwd", "abc", 7, None])
def test_a_checksum_that_is_none(
    digest: object, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_server.sha256", lambda data: digest)
    with pytest.raises(ConnectionError, match="is not a hub's"):
        list(pull(f"ms:{REPO}"))


def test_a_mirror(hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT")
    hub.pages_at = "https://huggingface.co"
    list(pull("llama3.2:1b", mirror=f"{hub.url}/"))
    assert is_whole("llama3.2:1b", files)


# Wrong bytes


def test_wrong_bytes(hub: HubServer, files: dict[str, bytes]) -> None:
    wrong = b"x" * len(files[WEIGHTS])
    hub.faults[WEIGHTS] = [Body(wrong)]
    message = (
        f"{WEIGHTS} has sha256 {sha256(wrong)}, but {sha256(files[WEIGHTS])} is listed; it was "
        "removed"
    )
    with pytest.raises(OSError, match=message):
        list(pull("llama3.2:1b"))
    assert not list(pulled.models_root().glob(f"*/*/{WEIGHTS}*"))
    list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)


def test_wrong_bytes_of_a_small_file(hub: HubServer, files: dict[str, bytes]) -> None:
    wrong = files["tokenizer_config.json"].replace(b"{", b" ")
    hub.faults["tokenizer_config.json"] = [Body(wrong)]
    listed = git_sha1(files["tokenizer_config.json"])
    with pytest.raises(OSError, match=f"has git sha1 {git_sha1(wrong)}, but {listed} is listed"):
        list(pull("llama3.2:1b"))


def test_a_resumed_part_with_wrong_bytes(hub: HubServer, files: dict[str, bytes]) -> None:
    hub.faults[WEIGHTS] = [Cut(1000)] + [Status(503)] * 6
    with pytest.raises(ConnectionError):
        list(pull("llama3.2:1b"))
    part_of(WEIGHTS).write_bytes(b"x" * 1000)
    with pytest.raises(OSError, match=r"has sha256 .* is listed; it was removed"):
        list(pull("llama3.2:1b"))
    list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)


@pytest.mark.parametrize("change", [b"", b"more"])
def test_a_wrong_length(change: bytes, hub: HubServer, files: dict[str, bytes]) -> None:
    data = files[WEIGHTS] + change if change else files[WEIGHTS][:-7]
    hub.faults[WEIGHTS] = [Body(data)]
    message = f"the hub lists {len(files[WEIGHTS]):,} bytes, but its server sends {len(data):,};"
    with pytest.raises(OSError, match=message):
        list(pull("llama3.2:1b"))
    assert not list(pulled.models_root().glob(f"*/*/{WEIGHTS}*"))


@pytest.mark.parametrize("extra", [0, 5])
def test_a_part_that_is_whole_or_longer(
    extra: int, hub: HubServer, files: dict[str, bytes]
) -> None:
    hub.faults[WEIGHTS] = [Cut(1000)] + [Status(503)] * 6
    with pytest.raises(ConnectionError):
        list(pull("llama3.2:1b"))
    part_of(WEIGHTS).write_bytes(files[WEIGHTS] + b"x" * extra)
    hub.requests.clear()
    list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)
    assert len(hub.asked_for(WEIGHTS)) == bool(extra)


def test_a_file_of_the_store_that_was_cut(hub: HubServer, files: dict[str, bytes]) -> None:
    list(pull("llama3.2:1b"))
    model = pulled.find("llama3.2:1b")
    assert model is not None
    os.truncate(model.folder / WEIGHTS, 100)
    list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)


# Access


def test_a_gated_model_without_a_token(hub: HubServer, run_command: Command) -> None:
    hub.gated.add(REPO)
    code, _, err = run_command("pull", "llama3.2:1b")
    assert code == 1
    assert f"accept its license at https://huggingface.co/{REPO}" in err
    assert "hf auth login" in err
    assert "HF_TOKEN" in err
    assert "llama pull llama3.2:1b --hub ms" in err
    assert "llama pull hf:unsloth/Llama-3.2-1B-Instruct" in err


def test_a_gated_model_with_tokens(
    hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.gated.add(REPO)
    monkeypatch.setenv("HF_TOKEN", "bad")
    with pytest.raises(PermissionError, match="with the account whose token is used here"):
        list(pull("llama3.2:1b"))
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "huggingface").mkdir()
    (tmp_path / "huggingface" / "token").write_text("good\n")
    list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)
    here = [h for _, path, h in hub.requests if "/resolve/" in path]
    assert here
    assert all(headers["Authorization"] for headers in here if "localhost" not in headers["Host"])
    elsewhere = [headers for _, path, headers in hub.requests if path.startswith("/cdn/")]
    assert elsewhere
    assert all(headers["Host"].startswith("localhost") for headers in elsewhere)
    assert not any("good" in str(headers) for headers in elsewhere)


def test_a_token_that_has_expired(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "expired")
    with pytest.raises(PermissionError, match="does not accept the token of HF_TOKEN or `hf auth"):
        list(pull("llama3.2:1b"))


def test_modelscope_with_a_token(
    hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated.add(REPO)
    with pytest.raises(PermissionError, match="set MODELSCOPE_API_TOKEN to a token from"):
        list(pull(f"ms:{REPO}"))
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "good")
    hub.requests.clear()
    list(pull(f"ms:{REPO}"))
    assert is_whole(f"ms:{REPO}", files)
    for _, path, headers in hub.requests:
        assert ("good" in str(headers)) == (not path.startswith("/cdn/"))
        assert ("m_session_id=good" in headers.get("Cookie", "")) == (not path.startswith("/cdn/"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hf:meta-llama/Llama-3.2-1B-Instrct",
            r"no repository meta-llama/Llama-3.2-1B-Instrct on "
            r".* \(did you mean meta-llama/Llama-3.2-1B-Instruct .*, or it is private: set HF_",
        ),
        (
            "ms:LLM-Research/Llama-3.2-1B-Instrct",
            r"you mean LLM-Research/Llama-3.2-1B-Instruct",
        ),
        ("llama3.2:2b", r"llama3.2:2b is not a model that can be pulled \(did you mean llama3.2:"),
        ("meta-llama/Llama-3.2-1B", r"did you mean hf:meta-llama/Llama-3.2-1B or ms:"),
        ("hf:../..", "hf:../.. is not a model that can be pulled"),
        ("hf:a/b@../../c", "is not a model that can be pulled"),
        ("https://llama3-2.llamameta.net/x?Policy=y", "a signed URL of Meta has one"),
        ("hf:noslash", "hf:noslash is not a model that can be pulled"),
        ("tiny", "tiny is bundled with this package"),
    ],
)
def test_names_that_no_hub_has(name: str, message: str, hub: HubServer) -> None:
    with pytest.raises(InputError, match=message):
        list(pull(name))


def test_a_name_of_the_store_is_not_mixed_with_flags(hub: HubServer) -> None:
    with pytest.raises(InputError, match="--model belongs to a signed URL of Meta"):
        list(pull("llama3.2:1b", model="llama3.2:1b"))
    with pytest.raises(InputError, match="hub is 'x'; it is hf"):
        list(pull("llama3.2:1b", hub="x"))


# The disk


def test_too_little_space_is_noticed_before(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(0, 0, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"MB are needed in .*models, where 0.0 MB are free; make"):
        list(pull("llama3.2:1b"))
    assert not hub.asked_for(WEIGHTS)


def test_a_disk_that_fills_up(
    hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    real = open

    def opened(path: object, mode: str = "r") -> object:
        stream = real(path, mode)  # type: ignore[call-overload]
        if str(path).endswith(f"{WEIGHTS}.part") and mode == "wb":
            write = stream.write

            def write_some(block: bytes) -> int:
                if stream.tell() >= 20_000:
                    full(0)
                return write(block[:20_000])

            return _Wrapped(stream, write_some)
        return stream

    monkeypatch.setattr(download, "open", opened, raising=False)
    with pytest.raises(OSError, match=r"the disk of .* is full: No space .* the same command cont"):
        list(pull("llama3.2:1b"))
    assert part_of(WEIGHTS).stat().st_size > 0
    monkeypatch.undo()


class _Wrapped:
    def __init__(self, stream: object, write: object) -> None:
        self.stream, self.write = stream, write

    def __enter__(self) -> "_Wrapped":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()  # type: ignore[attr-defined]


# The cache of huggingface_hub


def fill_cache(files: dict[str, bytes], commit: str, home: Path) -> Path:
    folder = home / "hub" / f"models--{REPO.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    for name, data in files.items():
        blob = sha256(data) if name.endswith((".safetensors", ".bin", ".pth")) else git_sha1(data)
        (folder / "blobs" / blob).write_bytes(data)
        link = folder / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(folder / "blobs" / blob, link.parent))
    return folder


def test_the_cache_of_hugging_face_is_used_where_it_lies(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    cache = fill_cache(files, hub.commit(REPO), tmp_path / "huggingface")
    list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)
    assert all("/api/" in path for _, path, _ in hub.requests)
    model = pulled.find("llama3.2:1b")
    assert model is not None
    assert (model.folder / WEIGHTS).resolve() == cache / "blobs" / sha256(files[WEIGHTS])
    assert open_checkpoint("llama3.2:1b").parameters > 0
    assert pulled.remove("llama3.2:1b") < 10_000
    assert (cache / "blobs" / sha256(files[WEIGHTS])).exists()


def test_a_damaged_cache_is_not_used(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    cache = fill_cache(files, hub.commit(REPO), tmp_path / "huggingface")
    (cache / "blobs" / sha256(files[WEIGHTS])).write_bytes(b"x" * len(files[WEIGHTS]))
    events = list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)
    assert any(re.search("blobs.* has sha256 .*; it is downloaded", e.status) for e in events)


def test_a_cache_that_was_cleared(hub: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    cache = fill_cache(files, hub.commit(REPO), tmp_path / "huggingface")
    list(pull("llama3.2:1b"))
    shutil.rmtree(cache)
    with pytest.raises(MissingFileError, match=r"of llama3.2:1b is gone from .*`llama pull"):
        open_checkpoint("llama3.2:1b")
    list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)


def test_offline(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConnectionError, match=f"HF_HUB_OFFLINE is set, and .* not all of {REPO}"):
        list(pull("llama3.2:1b"))
    cache = fill_cache(files, hub.commit(REPO), tmp_path / "huggingface")
    list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)
    assert hub.requests == []
    (cache / "blobs" / sha256(files[WEIGHTS])).unlink()
    with pytest.raises(ConnectionError, match="has not all of"):
        list(pull(f"hf:{REPO}"))


def test_without_an_answer_the_cache_serves(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_cache(files, hub.commit(REPO), tmp_path / "huggingface")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    events = list(pull("llama3.2:1b"))
    assert any("All files are in" in event.status for event in events)
    assert is_whole("llama3.2:1b", files)


# Meta's signed URLs


@pytest.fixture
def signed(hub: HubServer, checkpoint: Path) -> dict[str, bytes]:
    """Files behind Meta's signed URL."""
    names = ("params.json", "tokenizer.model", "consolidated.00.pth")
    files = {name: (checkpoint / name).read_bytes() for name in names}
    lines = [f"{hashlib.md5(data).hexdigest()}  {name}\n" for name, data in files.items()]
    files["checklist.chk"] = "".join(lines).encode()
    hub.meta |= {f"Llama-3.2-1B-Instruct/{name}": data for name, data in files.items()}
    return files


def test_a_signed_url(hub: HubServer, signed: dict[str, bytes], run_command: Command) -> None:
    hub.faults["consolidated.00.pth"] = [Status(503), Cut(1000)]
    code, out, _ = run_command("pull", hub.signed_url, "--model", "llama3.2:1b-instruct")
    assert (code, out[:20]) == (0, "llama3.2:1b: 3 files")
    model = pulled.find("llama3.2:1b")
    assert model is not None
    assert model.source == "https://127.0.0.1/Llama-3.2-1B-Instruct"
    assert model.license == "Llama 3.2"
    assert all((model.folder / f.name).read_bytes() == signed[f.name] for f in model.files)
    assert "secret" not in (model.folder.parent / "pulled.json").read_text()
    assert open_checkpoint("llama3.2:1b").layout == "meta"


def test_llama_2_has_its_tokenizer_beside_the_folders(
    hub: HubServer, signed: dict[str, bytes]
) -> None:
    hub.meta.clear()
    *lines, last = signed["checklist.chk"].splitlines(keepends=True)
    by_name = {line.split()[1].decode(): line for line in (*lines, last)}
    folder = {name: data for name, data in signed.items() if name != "tokenizer.model"}
    folder["checklist.chk"] = by_name["params.json"] + by_name["consolidated.00.pth"]
    hub.meta |= {f"llama-2-7b-chat/{name}": data for name, data in folder.items()}
    hub.meta["tokenizer.model"] = signed["tokenizer.model"]
    hub.meta["tokenizer_checklist.chk"] = by_name["tokenizer.model"]
    list(pull(hub.signed_url, model="llama2"))
    assert open_checkpoint("llama2:7b").tokenizer is not None


def test_a_signed_url_that_has_expired(hub: HubServer, signed: dict[str, bytes]) -> None:
    hub.meta.clear()
    policy = {"Statement": [{"Condition": {"DateLessThan": {"AWS:EpochTime": time.time() - 7200}}}]}
    text = (
        base64.b64encode(json.dumps(policy).encode())
        .decode()
        .translate(str.maketrans("+=/", "-_~"))
    )
    url = hub.signed_url.replace("Policy=x", f"Policy={text}")
    with pytest.raises(PermissionError, match=r"the signed URL expired 2.0 hours ago: it is valid"):
        list(pull(url, model="llama3.2:1b"))


@pytest.mark.parametrize(
    ("change", "model", "message"),
    [
        ("&Signature=secret", "llama3.2:1b", "the URL is incomplete .put it in single quotes"),
        (
            "",
            "llama3.1:8b",
            "of another family than llama3.1 .whose URLs begin with https://llama3",
        ),
        ("", None, "of which model. Give its short name with the signed URL: --model NAME"),
    ],
)
def test_a_signed_url_that_is_refused(
    change: str, model: str | None, message: str, hub: HubServer, signed: dict[str, bytes]
) -> None:
    url = hub.signed_url.replace(change, "") if change else hub.signed_url
    with pytest.raises((PermissionError, InputError), match=message) as caught:
        list(pull(url, model=model))
    assert "secret" not in str(caught.value)


def test_wrong_bytes_from_meta(hub: HubServer, signed: dict[str, bytes]) -> None:
    wrong = b"x" * len(signed["consolidated.00.pth"])
    hub.meta["Llama-3.2-1B-Instruct/consolidated.00.pth"] = wrong
    with pytest.raises(OSError, match=f"has md5 {hashlib.md5(wrong).hexdigest()}, but"):
        list(pull(hub.signed_url, model="llama3.2:1b"))


# Stops, and several at once


def test_closing_the_events_ends_the_downloads(hub: HubServer, files: dict[str, bytes]) -> None:
    go = threading.Event()
    hub.faults[WEIGHTS] = [Hang(1000, go)]
    events = pull("llama3.2:1b")
    for event in events:
        if event.file == WEIGHTS and event.completed == 1000:
            break
    events.close()  # type: ignore[attr-defined]
    go.set()
    assert part_of(WEIGHTS).read_bytes() == files[WEIGHTS][:1000]
    assert not any(
        thread.name.startswith("Thread") and thread.daemon and "guard" in thread.name
        for thread in threading.enumerate()
    )
    with pulled.locked("llama3.2:1b"):
        pass
    list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)


def start(hub: HubServer, tmp_path: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "llama", "pull", "llama3.2:1b"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_bytes(name: str) -> None:
    """Until a process has written some bytes of a file."""
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size for p in pulled.models_root().glob(f"*/*/{name}.part")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_process_that_is_stopped(
    how: signal.Signals, hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    go = threading.Event()
    hub.faults[WEIGHTS] = [Hang(20_000, go)]
    process = start(hub, tmp_path)
    wait_for_bytes(WEIGHTS)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    go.set()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "stopped; what is here is kept, and the same command continues" in err
    assert pulled.find("llama3.2:1b") is None
    assert pulled.unfinished_pulls()["llama3.2:1b"] > 0
    hub.requests.clear()
    list(pull("llama3.2:1b"))
    assert is_whole("llama3.2:1b", files)
    (headers,) = hub.asked_for(WEIGHTS)
    assert int(headers["Range"].removeprefix("bytes=").removesuffix("-")) > 0


def test_two_at_once(hub: HubServer, files: dict[str, bytes]) -> None:
    go = threading.Event()
    hub.faults[WEIGHTS] = [Hang(1000, go)]
    first = pull("llama3.2:1b")
    for event in first:
        if event.file == WEIGHTS and event.completed == 1000:
            break
    second: list[PullEvent] = []
    for event in pull("llama3.2:1b"):
        second.append(event)
        if event.status.startswith("waiting for another process"):
            break
    assert "waiting for another process that pulls llama3.2:1b" in second[-1].status
    waiting = threading.Thread(target=lambda: second.extend(pull("llama3.2:1b")))
    waiting.start()
    hub.faults[WEIGHTS] = []
    go.set()
    assert [event.status for event in first][-1] == "success"
    waiting.join(30)
    assert second[-1].status == "success"
    assert is_whole("llama3.2:1b", files)
    whole = [h for h in hub.asked_for(WEIGHTS) if "Range" not in h]
    assert len(whole) == 1


# Commands


def test_list_show_and_rm(hub: HubServer, run_command: Command) -> None:
    run_command("pull", "llama3.2:1b")
    hub.faults[WEIGHTS] = [Cut(1000)] + [Status(503)] * 6
    hub.models["a/other"] = hub.models[REPO] | {WEIGHTS: b"x" * 5000}
    run_command("pull", "hf:a/other")
    code, out, _ = run_command("list")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert rows["llama3.2:1b"][2:4] == ["hf", "float32"]
    assert rows["tiny"][2:] == ["meta", "bfloat16", "bundled"]
    assert rows["hf:a/other"][-1] == "unfinished"
    code, out, _ = run_command("list", "--json")
    assert {m["name"] for m in json.loads(out)["models"]} == {"llama3.2:1b", "tiny"}
    code, out, _ = run_command("show", "llama3.2")
    assert code == 1
    code, out, _ = run_command("show", "llama3.2:1b-instruct")
    assert code == 0
    assert out.startswith("llama3.2:1b: Llama-shaped")
    for part in (
        "kind        chat",
        f"source      hf:{REPO}",
        hub.commit(REPO),
        "context",
        WEIGHTS,
    ):
        assert part in out
    code, out, _ = run_command("show", "tiny", "--json")
    assert json.loads(out)["kind"] == "chat"
    code, _, err = run_command("rm", "llama3.2:1")
    assert code == 1
    assert "no model llama3.2:1 was pulled (did you mean llama3.2:1b" in err
    code, out, err = run_command("rm", "llama3.2:1b", "hf:a/other")
    assert (code, err) == (0, "")
    assert re.match(r"removed llama3.2:1b: 0.\d MB are free again\n", out)
    assert run_command("rm")[0] == 1


def test_an_empty_list(
    hub: HubServer, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulled, "_bundled", lambda: None)
    code, out, _ = run_command("list")
    assert (code, out[:19]) == (0, "no models are here;")


def test_the_aliases_of_the_page_are_those_of_the_code(run_command: Command) -> None:
    code, out, _ = run_command("list", "--aliases")
    assert code == 0
    page = (ROOT / "docs" / "models.md").read_text()
    table = re.findall(r"^\| `(\S+)` \| (\S+) \| (\w+) \| (.*?) \| (\S+) \| (\S+) \|$", page, re.M)
    code, out, _ = run_command("list", "--aliases", "--json")
    expected = [
        (
            m["name"],
            m["parameters"],
            "base" if m["name"].endswith("text") else "chat",
            m["license"],
            m["repo"],
            m["modelscope"],
        )
        for m in json.loads(out)
    ]
    assert table == expected


def test_progress_is_shown_above_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(console, "notice", lines.append)
    made: dict[str, tqdm.tqdm] = {}

    def progress(total: int, name: str, done: int) -> tqdm.tqdm:
        made[name] = tqdm.tqdm(total=total, initial=done, file=io.StringIO())
        return made[name]

    monkeypatch.setattr(console, "progress", progress)
    with model_commands._Bars() as bars:
        bars.show(PullEvent("pulling manifest"))
        bars.show(PullEvent("waiting"))
        bars.show(PullEvent("waiting"))
        for done in (0, 5, 3, 10):
            bars.show(PullEvent("pulling x", "x", 10, done, "file", (done, 20)))
            assert made["file"].n == done
            assert made["all files"].n == done
        assert made["file"].disable  # closed
    assert lines == ["waiting"]
