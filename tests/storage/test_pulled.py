"""Names of models, and the local store of pulled ones, without a hub."""

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llama import Llama
from llama.checkpoint.info import read_facts, short_count
from llama.checkpoint.opening import open_checkpoint
from llama.errors import InputError, MissingFileError
from llama.storage import pulled
from llama.storage.model_names import RELEASED, model_name, released
from llama.storage.pulled import PulledFile, PulledModel

ROOT = Path(__file__).parents[2]
TINY = ROOT / "params" / "tiny"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def add(name: str, version: str = "v1", source: Path = TINY) -> PulledModel:
    """A model as `llama pull` leaves it."""
    folder = pulled.folder_of_name(name) / version
    folder.mkdir(parents=True)
    files = []
    for file in sorted(source.iterdir()):
        if file.suffix != ".md" and file.is_file():
            shutil.copy2(file, folder)
            files.append(PulledFile(file.name, file.stat().st_size, "0" * 64))
    now = datetime(2026, 11, 1, tzinfo=UTC)
    model = PulledModel(name, folder, f"hf:{name}", "abc", "llama3.2", now, tuple(files))
    return pulled.write_record(model)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("llama3.2", "llama3.2:3b"),
        ("llama3.2:latest", "llama3.2:3b"),
        ("Llama3.2:1B", "llama3.2:1b"),
        ("llama3.2:1b-instruct", "llama3.2:1b"),
        ("llama3.2:1b-text", "llama3.2:1b-text"),
        ("llama3.2:text", "llama3.2:3b-text"),
        ("llama3.1", "llama3.1:8b"),
        ("llama3.3", "llama3.3:70b"),
        ("llama2:chat", "llama2:7b"),
        ("llama2:13b-chat", "llama2:13b"),
        ("llama3:70b-base", "llama3:70b-text"),
        ("llama3.2:70b", "llama3.2:70b"),
        ("llama3.2:1b-instruct-q4_K_M", "llama3.2:1b-instruct-q4_K_M"),
        ("tiny:latest", "tiny"),
        ("https://huggingface.co/owner/na.me/", "hf:owner/na.me"),
        ("hf.co/owner/name", "hf:owner/name"),
        ("https://www.modelscope.cn/models/owner/name", "ms:owner/name"),
        ("some/where/else", "some/where/else"),
    ],
)
def test_spellings_of_a_name(text: str, name: str) -> None:
    assert model_name(text) == name


def test_the_table_of_released_models() -> None:
    assert len(RELEASED) == 21
    shapes = {path.name: read_facts(str(path)) for path in (ROOT / "params").glob("*lama*")}
    used = set()
    for name, model in RELEASED.items():
        assert released(name) is model
        assert model.is_chat == any(word in model.repo for word in ("Instruct", "chat"))
        for other in filter(None, (model.modelscope, model.open_copy)):
            tail = model.repo.split("/")[1].removeprefix("Meta-").removesuffix("-hf")
            assert other.split("/")[1].removeprefix("Meta-").removesuffix("-hf") in (
                tail,
                f"{tail}-ms",
            )
        base = model.repo.split("/")[1].removesuffix("-hf").removesuffix("-chat")
        base = base if base in shapes else base.removesuffix("-Instruct")
        assert model.parameters == short_count(shapes[base].parameters())
        used.add(base)
    assert used == set(shapes)


def test_the_folder_behind_metas_addresses() -> None:
    assert RELEASED["llama2:7b"].meta_folders == ["llama-2-7b-chat"]
    assert RELEASED["llama3.2:1b"].meta_folders == ["Llama-3.2-1B-Instruct"]
    assert RELEASED["llama3.1:405b-text"].meta_folders[0] == "Llama-3.1-405B-MP8"
    assert RELEASED["llama3:8b"].meta_folders[1] == "Meta-Llama-3-8B-Instruct"


def test_a_pulled_name_stands_for_its_folder(models: Path, tmp_path: Path) -> None:
    model = add("llama3.2:1b")
    assert model.folder == models / "llama3.2:1b" / "v1"
    assert pulled.find("llama3.2:1b-instruct") == model
    assert open_checkpoint("llama3.2:1b:latest".removesuffix(":latest")).folder.path == str(
        model.folder
    )
    assert read_facts("llama3.2:1b").name == "llama3.2:1b"
    llama = Llama.build("llama3.2:1b", device="cpu", dtype="float32", max_seq_len=64)
    assert llama.tokenizer.model_path == str(model.folder / "tokenizer.model")


def test_a_folder_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("llama3.2:1b")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama3.2:1b").mkdir()
    assert pulled.open_folder("llama3.2:1b").names == []


def test_the_bundled_model_has_a_name(models: Path) -> None:
    assert open_checkpoint("tiny").folder.path == str(TINY)
    (bundled,) = pulled.pulled_models()
    assert (bundled.name, bundled.source) == ("tiny", "bundled")
    assert {file.name for file in bundled.files} >= {"params.json", "tokenizer.model"}
    with pytest.raises(InputError, match="tiny is part of this package"):
        pulled.remove("tiny")
    assert TINY.is_dir()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("llama3.2:1b-instruct", "; `llama pull llama3.2:1b` fetches it"),
        ("hf:owner/name", "; `llama pull hf:owner/name` fetches it"),
        ("llama3.2:2b", r"`llama list` shows \(did you mean llama3.2:"),
        ("nowhere/at/all", "pass the folder that has it"),
    ],
)
def test_an_unknown_name(name: str, hint: str) -> None:
    for use in (open_checkpoint, read_facts):
        with pytest.raises(MissingFileError, match=f"{name} is not there, nor was .*{hint}"):
            use(name)


def test_list_and_remove(models: Path) -> None:
    model = add("hf:owner/name")
    assert [found.name for found in pulled.pulled_models()] == ["hf:owner/name", "tiny"]
    with pytest.raises(MissingFileError, match=r"no model hf:owner/nam was pulled \(did you mean"):
        pulled.remove("hf:owner/nam")
    assert pulled.remove("hf:owner/name") >= model.size
    with pytest.raises(MissingFileError, match=r"no model llama3.2:1b was pulled; see"):
        pulled.remove("llama3.2:1b")
    assert pulled.find("hf:owner/name") is None
    assert not model.folder.exists()


def test_a_copy_shares_files(models: Path) -> None:
    model = add("llama3.2:1b")
    other = pulled.copy("llama3.2:1b", "assistant:latest")
    assert (other.name, other.source, other.digest) == ("assistant", model.source, model.digest)
    weights = "consolidated.00.pth"
    assert os.path.samefile(model.folder / weights, other.folder / weights)
    with pytest.raises(InputError, match="there is a model assistant already"):
        pulled.copy("llama3.2:1b", "assistant")
    with pytest.raises(MissingFileError, match="no model nothing was pulled"):
        pulled.copy("nothing", "more")
    assert pulled.remove("llama3.2:1b") < (TINY / weights).stat().st_size  # the copy keeps it
    assert open_checkpoint("assistant").parameters > 0
    assert pulled.remove("assistant") > (TINY / weights).stat().st_size


def test_a_new_version_takes_the_place_of_the_old_one(models: Path) -> None:
    old = add("llama3.2:1b", "v1")
    new = add("llama3.2:1b", "v2")
    assert pulled.find("llama3.2:1b") == new
    assert not old.folder.exists()


def test_an_interrupted_download_is_listed_and_removed(models: Path) -> None:
    folder = pulled.folder_of_name("hf:owner/name") / "v1"
    folder.mkdir(parents=True)
    (folder / "model.safetensors.part").write_bytes(b"12345")
    assert pulled.unfinished_pulls() == {"hf:owner/name": 5}
    assert [model.name for model in pulled.pulled_models()] == ["tiny"]
    assert pulled.remove("hf:owner/name") == 5
    assert pulled.unfinished_pulls() == {}


@pytest.mark.parametrize("name", ["", ".", "..", ".locks", "../outside", "a/../../b", "x" * 300])
def test_a_name_never_leaves_the_store(models: Path, name: str) -> None:
    keep = add("hf:owner/name")
    with pulled.locked("hf:owner/name"):  # makes the folder of locks
        pass
    assert pulled.find(name) is None
    with pytest.raises(MissingFileError, match="was pulled"):
        pulled.remove(name)
    assert pulled.folder_of_name(name).parent == models
    assert not pulled.folder_of_name(name).name.startswith(".")
    assert pulled.find("hf:owner/name") == keep
    assert (models / ".locks").is_dir()


def test_a_model_that_another_process_changes(models: Path) -> None:
    add("llama3.2:1b")
    message = "llama3.2:1b is being pulled by another process"
    with pulled.locked("llama3.2:1b"), pytest.raises(InputError, match=message):
        pulled.remove("llama3.2:1b")
    assert pulled.find("llama3.2:1b")


def test_a_damaged_record(models: Path) -> None:
    record = add("llama3.2:1b").folder.parent / "pulled.json"
    for content in ({}, {**json.loads(record.read_text()), "pulled_at": "x"}):
        record.write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"pulled.json is damaged .* pull the model again"):
            pulled.find("llama3.2:1b")
