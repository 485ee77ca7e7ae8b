import errno
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from fixtures import SENTENCES, write_sentencepiece, write_tiktoken

from llama import Tokenizer
from llama.storage import files
from llama.tokenization import vocabulary
from llama.training import tokenized
from llama.training.documents import Document, Raw, dialog_document, text_document
from llama.training.tokenized import Documents, tokenize

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "stories.txt"
    path.parent.mkdir()
    path.write_text("\n<|endoftext|>\n".join(SENTENCES))
    return path


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of sources, each time they are read."""
    names: list[str] = []
    read = tokenized.read_raw

    def noted(path: Path, *args: object) -> object:
        names.append(path.name)
        return read(path, *args)

    monkeypatch.setattr(tokenized, "read_raw", noted)
    return names


def write_lines(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


def same(document: Document, other: Document) -> bool:
    equal = torch.equal(document.tokens, other.tokens) and torch.equal(
        document.loss_mask, other.loss_mask
    )
    return equal and (document.tokens.dtype, document.loss_mask.dtype) == (torch.int32, torch.bool)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Documents in arrays


def documents_of_sizes(*sizes: int) -> list[Document]:
    flags = torch.arange(1000) % 3 != 0
    return [Document(torch.arange(n, dtype=torch.int32) + n, flags[:n]) for n in sizes]


def test_documents_in_memory() -> None:
    few = documents_of_sizes(5, 1, 0, 8)
    documents = Documents.of(few)
    assert len(documents) == 4
    assert all(same(a, b) for a, b in zip(documents, few, strict=True))
    assert documents.lengths.tolist() == [5, 1, 0, 8]
    assert documents.num_loss_tokens.tolist() == [3, 0, 0, 5]
    assert same(documents[-1], few[-1])
    assert [len(d) for d in documents[1:]] == [1, 0, 8]
    for wrong in (4, -5):
        with pytest.raises(IndexError, match=f"document {wrong} of 4"):
            documents[wrong]
    assert len(Documents.of([])) == len(Documents([])) == 0


def test_the_first_token_is_never_predicted() -> None:
    learned = Document(torch.tensor([7, 8]), torch.tensor([True, False]))
    documents = Documents.of([learned, learned])
    assert documents.num_loss_tokens.tolist() == [0, 0]
    assert documents[1].loss_mask.tolist() == [True, False]


def test_pieces_of_documents_in_several_arrays() -> None:
    few = documents_of_sizes(5, 3, 6, 4)
    parts = [Documents.of(few[:1]), Documents.of([]), Documents.of(few[1:3]), Documents.of(few[3:])]
    documents = Documents([array for part in parts for array in part._arrays])
    assert documents.lengths.tolist() == [5, 3, 6, 4]
    for i, whole in enumerate(few):
        assert same(documents[i], whole)
        piece = documents.segment(i, 1, 3)
        assert same(piece, Document(whole.tokens[1:3], whole.loss_mask[1:3]))


# Once, beside the source


def test_tokens_are_those_of_the_tokenizer(tokenizer: Tokenizer, stories: Path) -> None:
    dialog = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "hello"}]
    write_lines(
        stories.with_name("a.jsonl"),
        {"text": "the world"},
        "",
        {"text": " "},
        {"messages": dialog},
        {"prompt": "the", "response": "hello", "id": 1},
    )
    documents = tokenize(stories.parent, tokenizer)
    expected = [
        text_document(tokenizer, "the world"),
        *[dialog_document(tokenizer, dialog)] * 2,
        *(text_document(tokenizer, sentence) for sentence in SENTENCES),
    ]
    assert len(documents) == len(expected)
    assert all(same(a, b) for a, b in zip(documents, expected, strict=True))
    assert documents.lengths.tolist() == [len(d) for d in expected]
    assert documents.num_loss_tokens.tolist() == [int(d.loss_mask.sum()) for d in expected]


def test_sources_stay_in_order(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    order = [tmp_path / f"{name}.txt" for name in "bca"]
    documents = tokenize(order, tokenizer)
    assert [tokenizer.decode(d.tokens.tolist()[1:-1]) for d in documents] == ["b", "c", "a"]


def test_llama_2s_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_sentencepiece(tmp_path / "tokenizer.model"))
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "the", "response": "dog"}, {"text": "a\nb"})
    dialog = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "dog"}]
    documents = tokenize(path, tokenizer)
    assert same(documents[0], dialog_document(tokenizer, dialog))
    assert same(documents[1], text_document(tokenizer, "a\nb"))


def test_a_source_is_read_once(tokenizer: Tokenizer, stories: Path, built: list[str]) -> None:
    first = tokenize(stories, tokenizer)
    assert built == ["stories.txt"]
    second = tokenize(str(stories.parent), tokenizer)
    assert built == ["stories.txt"]
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    mine, others = names_in(stories.parent)
    assert (mine, others[:12], others[20:]) == ("stories.txt", "stories.txt.", ".tokens")
    assert isinstance(second._arrays[0].tokens, np.memmap)


def change_text(stories: Path) -> None:
    stories.write_text("another")


def change_time(stories: Path) -> None:
    os.utime(stories, ns=(0, stories.stat().st_mtime_ns + 1))


@pytest.mark.parametrize("change", [change_text, change_time])
def test_a_source_that_changed_is_read_again(
    tokenizer: Tokenizer, stories: Path, built: list[str], change: Callable[[Path], None]
) -> None:
    old = tokenize(stories, tokenizer)
    before = old[0].tokens.tolist()
    change(stories)
    new = tokenize(stories, tokenizer)
    assert built == ["stories.txt"] * 2
    assert len(new) == (1 if change is change_text else len(SENTENCES))
    assert old[0].tokens.tolist() == before  # who has it open keeps it
    assert len(names_in(stories.parent)) == 2


def test_another_format_is_read_again(
    tokenizer: Tokenizer, stories: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize(stories, tokenizer)
    tokenize(stories, tokenizer, tool_format="pythonic")
    assert built == ["stories.txt"] * 2
    monkeypatch.setattr(tokenized, "_FORMAT", tokenized._FORMAT + 1)
    tokenize(stories, tokenizer, tool_format="pythonic")
    assert built == ["stories.txt"] * 3


def test_each_tokenizer_has_tokens_of_its_own(
    tokenizer: Tokenizer, stories: Path, built: list[str], tmp_path: Path
) -> None:
    other = Tokenizer(write_tiktoken(tmp_path / "other.model", merges=[b"th"]))
    for _ in range(2):
        first, second = (tokenize(stories, t)[0].tokens.tolist() for t in (tokenizer, other))
        assert first == tokenizer.encode(SENTENCES[0], bos=True, eos=True)
        assert second == other.encode(SENTENCES[0], bos=True, eos=True)
    assert built == ["stories.txt"] * 2


def cut_off(data: bytearray) -> bytes:
    return data[:-8]


def longer(data: bytearray) -> bytes:
    return data + bytes(8)


def no_header(data: bytearray) -> bytes:
    return bytes(4096) + data[4096:]


def other_header(data: bytearray) -> bytes:
    return b"[1]".ljust(4096) + data[4096:]


def changed_offsets(data: bytearray) -> bytes:
    data[-60] ^= 1
    return data


def other_count(data: bytearray) -> bytes:
    return data.replace(b'"documents": 6', b'"documents": 5')


def only_a_header(data: bytearray) -> bytes:
    return data[:4096]


def nothing(data: bytearray) -> bytes:
    return b""


@pytest.mark.parametrize(
    "damage",
    [
        cut_off,
        longer,
        no_header,
        other_header,
        other_count,
        changed_offsets,
        only_a_header,
        nothing,
    ],
)
def test_a_damaged_file_of_tokens_is_made_again(
    tokenizer: Tokenizer,
    stories: Path,
    built: list[str],
    damage: Callable[[bytearray], bytes],
) -> None:
    whole = list(tokenize(stories, tokenizer))
    (file,) = stories.parent.glob("*.tokens")
    file.write_bytes(damage(bytearray(file.read_bytes())))
    again = tokenize(stories, tokenizer)
    assert built == ["stories.txt"] * 2
    assert all(same(a, b) for a, b in zip(whole, again, strict=True))


def test_the_layout_is_the_one_that_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", {"prompt": "the", "response": "12"}, {"text": "xy"})
    first, second = tokenize(source, tokenizer)
    (file,) = tmp_path.glob("a.jsonl.*.tokens")
    data = file.read_bytes()
    assert data[4095:4096] == b"\n"
    header = json.loads(data[:4096])
    count = len(first) + len(second)
    assert count % 2 == 1  # so that there is something to fill up
    assert (header["documents"], header["tokens"], header["skipped"]) == (2, count, 0)
    tokens = np.frombuffer(data[4096 : 4096 + 4 * count], "<u4")
    assert (tokens & 0x7FFFFFFF).tolist() == first.tokens.tolist() + second.tokens.tolist()
    assert (tokens >> 31).tolist() == first.loss_mask.tolist() + second.loss_mask.tolist()
    index = np.frombuffer(data[4096 + 4 * count + 4 :], "<i8").tolist()
    assert index == [0, len(first), count, int(first.loss_mask.sum()), int(second.loss_mask.sum())]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_many_batches_in_order(
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    monkeypatch.setattr(tokenized, "_BATCH_BYTES", 300)
    monkeypatch.setattr(vocabulary, "_MAX_BLOCK_CHARS", 100)  # workers are given the blocks
    texts = [f"{i} {SENTENCES[i % 6]} " * (i % 9 + 1) for i in range(60)]
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(texts))
    lines = [{"text": f"{i} {SENTENCES[i % 6]}"} for i in range(40)]
    write_lines(tmp_path / "b.jsonl", *lines[:20], "?", *lines[20:], "!")
    (tmp_path / "c.txt").write_text("the end")
    documents = tokenize(tmp_path, tokenizer, skip_bad_lines=True, workers=workers)
    assert "b.jsonl: 2 bad line(s) skipped, first line 21: not JSON" in capsys.readouterr().err
    assert len(documents) == 101
    for i, text in enumerate(texts):
        blocks = [text.rstrip()[at : at + 100] for at in range(0, len(text.rstrip()), 100)]
        ids = [token for block in blocks for token in tokenizer.encode(block)]
        assert documents[i].tokens.tolist() == [tokenizer.bos_id, *ids, tokenizer.eos_id]
        assert documents[i].loss_mask.tolist() == [False] + [True] * (len(ids) + 1)
        assert documents.num_loss_tokens[i] == len(ids) + 1
    for i in range(40):
        assert same(documents[60 + i], text_document(tokenizer, f"{i} {SENTENCES[i % 6]}"))
    assert same(documents[100], text_document(tokenizer, "the end"))
    assert not multiprocessing.active_children()


def test_batches_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenized, "_BATCH_BYTES", 10)
    raw = [Raw(line, content) for line, content in enumerate(["é" * 4, b"1234", "x" * 30, "y"])]
    batches = [batch for part in (raw, raw[:2], []) for batch in tokenized._batches(7, part)]
    assert [(b.source, b.raw, b.nbytes) for b in batches] == [
        (7, raw[:2], 12),
        (7, raw[2:3], 30),
        (7, raw[3:], 1),
        (7, raw[:2], 12),
        (7, [], 0),
        (7, [], 0),
    ]


def test_blocks_of_a_long_text_have_the_ids_of_the_whole(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    text = "the hello world 12345 é\U0001f642" * 40_000
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    (document,) = tokenize(path, tokenizer)
    assert document.tokens.tolist() == tokenizer.encode(text, bos=True, eos=True)
    assert len(text) > 2 * tokenizer.block_chars


def test_some_process_has_to_tokenize(tokenizer: Tokenizer, stories: Path) -> None:
    with pytest.raises(ValueError, match="workers=0"):
        tokenize(stories, tokenizer, workers=0)


def test_little_text_starts_no_process(
    tokenizer: Tokenizer, stories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    worker_map = tokenized.worker_map

    def noted(function: object, workers: int) -> object:
        counts.append(workers)
        return worker_map(function, 1)

    monkeypatch.setattr(tokenized, "worker_map", noted)
    monkeypatch.setattr(tokenized, "cpu_cores", lambda: 3)
    for nbytes in (2**26, stories.stat().st_size // 2, 1):
        monkeypatch.setattr(tokenized, "_WORKER_BYTES", nbytes)
        change_time(stories)
        tokenize(stories, tokenizer)
    assert counts == [1, 2, 3]


# Bad lines


def test_bad_lines_are_named_or_counted(
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    built: list[str],
) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        {"text": "one"},
        {"prompt": "one", "response": ""},
        "?",
        {"text": "two"},
    )
    message = r"a.jsonl, line 2: the dialog has no answer to train on \(--skip_bad_lines leaves"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            tokenize(path, tokenizer)
        assert names_in(tmp_path) == ["a.jsonl"]
    assert capsys.readouterr().err == ""
    for _ in range(2):  # also of what was tokenized before
        documents = tokenize(path, tokenizer, skip_bad_lines=True)
        assert len(documents) == 2
        said = capsys.readouterr().err
        assert said == (
            f"{path}: 2 bad line(s) skipped, first line 2: the dialog has no answer to train on\n"
        )
    with pytest.raises(ValueError, match=message):
        tokenize(path, tokenizer)
    assert built == ["a.jsonl"] * 3


def test_without_bad_lines_the_setting_makes_no_difference(
    tokenizer: Tokenizer, stories: Path, built: list[str]
) -> None:
    for skip in (True, False, True):
        tokenize(stories, tokenizer, skip_bad_lines=skip)
    assert built == ["stories.txt"]


def test_long_reasons_fit_into_the_header(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"\U0001f642" * 5000: 1}, {"text": "one"})
    for _ in range(2):
        assert len(tokenize(path, tokenizer, skip_bad_lines=True)) == 1
    bad = {"role": "\U0001f642" * 5000, "content": ""}
    write_lines(path, {"messages": [bad]}, {"text": "one"})
    for _ in range(2):
        assert len(tokenize(path, tokenizer, skip_bad_lines=True)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "a.txt is empty"),
        ("a.txt", " \n\n<|endoftext|>\n", "a.txt has no document to train on, only blank lines"),
        ("a.jsonl", "\n \n", "a.jsonl has no document to train on, only blank lines"),
        ("a.jsonl", "?\n!\n", "a.jsonl has no document to train on: line 1: not JSON"),
    ],
)
def test_sources_with_nothing_to_learn(
    tokenizer: Tokenizer, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        tokenize(tmp_path, tokenizer, skip_bad_lines=True)
    assert names_in(tmp_path) == [name]


# Disks, other processes, interruptions


def test_where_the_folder_is_read_only_tokens_go_to_the_cache(
    tokenizer: Tokenizer,
    stories: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    built: list[str],
) -> None:
    twin = tmp_path / "twin" / "stories.txt"
    twin.parent.mkdir()
    twin.write_text("another")
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "cache"))
    temporary = tokenized.tempfile.TemporaryFile

    def refused(dir: Path) -> object:
        if dir in (stories.parent, twin.parent):
            raise OSError(errno.EROFS, "Read-only file system")
        return temporary(dir=dir)

    monkeypatch.setattr(tokenized.tempfile, "TemporaryFile", refused)
    for _ in range(2):
        documents = tokenize([stories, twin], tokenizer)
        assert len(documents) == len(SENTENCES) + 1
    assert built == ["stories.txt"] * 2
    assert names_in(stories.parent) == names_in(twin.parent) == ["stories.txt"]
    assert len(names_in(tmp_path / "cache" / "tokens")) == 2
    monkeypatch.setattr(tokenized.tempfile, "TemporaryFile", temporary)
    tokenize(stories, tokenizer)  # writable again: the tokens belong beside it
    assert len(names_in(stories.parent)) == 2
    monkeypatch.setattr(tokenized.tempfile, "TemporaryFile", refused)
    shutil.rmtree(tmp_path / "cache")
    tokenize(stories, tokenizer)  # and are used from there though it is read-only
    assert built == ["stories.txt"] * 3


def test_a_full_disk_leaves_nothing(
    tokenizer: Tokenizer, stories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match=r"the disk of .*tokens is full: No space .*; make room"):
            tokenize(stories, tokenizer)
    assert names_in(stories.parent) == ["stories.txt"]


def test_what_a_killed_process_left_is_removed(tokenizer: Tokenizer, stories: Path) -> None:
    tokenize(stories, tokenizer)
    (file,) = stories.parent.glob("*.tokens")
    abandoned = stories.with_name(f".{file.name}.0123abcd.part")
    for path in (abandoned, stories.with_name(".stories.txt.part")):
        path.write_text("")
    change_time(stories)
    tokenize(stories, tokenizer)
    assert names_in(stories.parent) == [".stories.txt.part", "stories.txt", file.name]


def test_a_source_that_grows_while_it_is_read_is_refused(
    tokenizer: Tokenizer, stories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = tokenized._encode

    def meanwhile(*args: object) -> object:
        with stories.open("a") as file:
            file.write("more")
        return encode(*args)

    monkeypatch.setattr(tokenized, "_encode", meanwhile)
    with pytest.raises(OSError, match=r"stories.txt has changed while it was read; run it again"):
        tokenize(stories, tokenizer)
    assert names_in(stories.parent) == ["stories.txt"]


def test_others_wait_for_the_one_that_tokenizes(
    tokenizer: Tokenizer,
    stories: Path,
    monkeypatch: pytest.MonkeyPatch,
    built: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    acquire = filelock.FileLock.acquire

    def impatient(self: filelock.FileLock, timeout: float | None = None) -> object:
        return acquire(self, timeout=None if timeout is None else 0.1)

    encode, entered, finish = tokenized._encode, threading.Event(), threading.Event()

    def slow(*args: object) -> object:
        entered.set()
        finish.wait(10)
        return encode(*args)

    monkeypatch.setattr(filelock.FileLock, "acquire", impatient)
    monkeypatch.setattr(tokenized, "_encode", slow)
    found: list[Documents] = []
    calls = [
        threading.Thread(target=lambda: found.append(tokenize(stories, tokenizer)))
        for _ in range(3)
    ]
    calls[0].start()
    assert entered.wait(10)
    for call in calls[1:]:
        call.start()
    said = ""
    for _ in range(100):
        said += capsys.readouterr().err
        if said.count("waiting") == 2:
            break
        time.sleep(0.1)
    assert said.count(f"waiting for another process that tokenizes in {stories.parent}\n") == 2
    finish.set()
    for call in calls:
        call.join(10)
    assert built == ["stories.txt"]
    assert [len(documents) for documents in found] == [len(SENTENCES)] * 3
    assert len(names_in(stories.parent)) == 2
