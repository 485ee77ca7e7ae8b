import codecs
import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from fixtures import write_sentencepiece

from llama import Tokenizer
from llama.dialog import ToolFormat
from llama.tokenizer import ChatFormat
from llama.training.documents import (
    BadLines,
    Raw,
    dialog_document,
    find_sources,
    parse_line,
    raw_document,
    read_raw,
    read_texts,
    text_document,
)

DIALOG = [
    {"role": "system", "content": "the"},
    {"role": "user", "content": "123"},
    {"role": "assistant", "content": " hello "},
    {"role": "user", "content": "the"},
    {"role": "assistant", "content": "world"},
]


@pytest.fixture(scope="module")
def llama2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_sentencepiece(tmp_path_factory.mktemp("llama2") / "tokenizer.model"))


def raws(path: Path, block_chars: int | None = None, skip: bool = False) -> list[Raw]:
    return list(read_raw(path, BadLines(path, skip), block_chars))


# Text and dialogs as documents


def test_a_text_is_learned_with_its_end(tokenizer: Tokenizer) -> None:
    document = text_document(tokenizer, "hello")
    assert document.tokens.tolist() == tokenizer.encode("hello", bos=True, eos=True)
    assert document.loss_mask.tolist() == [False] + [True] * (len(document) - 1)
    assert (document.tokens.dtype, document.loss_mask.dtype) == (torch.int32, torch.bool)


def test_parts_of_a_text_join_to_it(tokenizer: Tokenizer) -> None:
    first = text_document(tokenizer, "hello", ends=False)
    last = text_document(tokenizer, " world", begins=False)
    joined = torch.cat((first.tokens, last.tokens)).tolist()
    assert joined == tokenizer.encode("hello world", bos=True, eos=True)
    assert first.loss_mask.tolist() == [False] + [True] * (len(first) - 1)
    assert last.loss_mask.all()


def test_of_a_dialog_the_answers_and_their_ends_are_learned(tokenizer: Tokenizer) -> None:
    document = dialog_document(tokenizer, DIALOG)
    learned = document.tokens[document.loss_mask].tolist()
    assert tokenizer.decode(learned) == "hello<|eot_id|>world<|eot_id|>"
    prompt = ChatFormat(tokenizer).encode_dialog_prompt(DIALOG[:2])
    assert document.tokens[: len(prompt)].tolist() == prompt
    assert not document.loss_mask[: len(prompt)].any()


def test_whose_words_are_learned_can_be_chosen(tokenizer: Tokenizer) -> None:
    document = dialog_document(tokenizer, DIALOG, {"user", "assistant"})
    learned = document.tokens[document.loss_mask].tolist()
    said = "123<|eot_id|>hello<|eot_id|>the<|eot_id|>world<|eot_id|>"
    assert tokenizer.decode(learned) == said


def test_llama_2_learns_answers_as_it_will_be_asked_for_them(llama2: Tokenizer) -> None:
    document = dialog_document(llama2, DIALOG)
    chat = ChatFormat(llama2)
    question = {"role": "user", "content": "Why?"}
    history = chat.encode_dialog_prompt([*DIALOG, question])
    ids = document.tokens.tolist()
    assert ids == history[: len(history) - len(chat.encode_dialog_prompt([question]))]
    given = [chat.encode_dialog_prompt(DIALOG[:end]) for end in (2, 4)]
    for prompt in given:
        assert ids[: len(prompt)] == prompt
        assert document.loss_mask[len(prompt)]
        assert not document.loss_mask[len(prompt) - 1]
    first_end = ids.index(llama2.eos_id)
    expected = [len(given[0]) <= i <= first_end or i >= len(given[1]) for i in range(len(ids))]
    assert document.loss_mask.tolist() == expected
    assert ids[-1] == llama2.eos_id


def test_llama_2_learns_nothing_of_an_open_question(llama2: Tokenizer) -> None:
    whole, answered = dialog_document(llama2, DIALOG[:4]), dialog_document(llama2, DIALOG[:3])
    assert whole.tokens.tolist()[: len(answered)] == answered.tokens.tolist()
    assert not whole.loss_mask[len(answered) :].any()
    with pytest.raises(ValueError, match="no turn of 'user' to train on"):
        dialog_document(llama2, DIALOG, {"user", "assistant"})


@pytest.mark.parametrize("answer", [[], [{"role": "assistant", "content": " \n"}]])
def test_a_dialog_without_an_answer_is_refused(tokenizer: Tokenizer, answer: list) -> None:
    with pytest.raises(ValueError, match="the dialog has no answer to train on"):
        dialog_document(tokenizer, [{"role": "user", "content": "the"}, *answer])


# Finding sources


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = ["2024/y.txt", "b.txt", "a.JSONL", "below/c.txt", "below/d.csv", "with, comma.txt"]
    (tmp_path / "empty").mkdir()
    for name in [*names, ".hidden.txt", ".git/e.txt", "b.txt.12345678.tokens"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("data_path", "names"),
    [
        ("b.txt", "b.txt"),
        (Path("b.txt"), "b.txt"),
        (".", "2024/y.txt a.JSONL b.txt below/c.txt with, comma.txt"),
        ("below", "below/c.txt"),
        ("*.txt", "b.txt with, comma.txt"),
        ("**/c.*", "below/c.txt"),
        ("b*", "b.txt below/c.txt"),
        ("below,b.txt", "below/c.txt b.txt"),
        ("b.txt, a.JSONL", "b.txt a.JSONL"),
        (("b.txt", "a.JSONL"), "b.txt a.JSONL"),
        (["b.txt", Path("."), "*.txt"], "b.txt 2024/y.txt a.JSONL below/c.txt with, comma.txt"),
        ("with, comma.txt", "with, comma.txt"),
        ("./b.txt,below/../b.txt", "b.txt"),
        ("*", "2024/y.txt a.JSONL b.txt below/c.txt with, comma.txt"),
        (2024, "2024/y.txt"),
    ],
)
def test_sources(folder: Path, data_path: object, names: str) -> None:
    assert " ".join(map(str, find_sources(data_path))) == names


def test_sources_at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert find_sources("~/below") == [folder / "below/c.txt"]
    assert find_sources("~/*.JSONL") == [folder / "a.JSONL"]


@pytest.mark.parametrize(
    ("data_path", "error", "message"),
    [
        ("missing.txt", FileNotFoundError, "missing.txt is not there; give a .txt or .jsonl"),
        ("b.txt,missing", FileNotFoundError, "^missing is not there"),
        ("below/d.csv", ValueError, "below/d.csv is none of .txt and .jsonl: write texts into"),
        ("empty", FileNotFoundError, "no .txt or .jsonl in empty; it holds nothing"),
        ("below/*.csv", FileNotFoundError, r"no .txt or .jsonl in below/\*.csv; it holds 1 .csv"),
        ([], FileNotFoundError, r"no data in \[\]"),
        ("", FileNotFoundError, r"no data in \[''\]"),
        ("gs://bucket/a.txt", ValueError, "gs://bucket/a.txt: .* on this machine; download it"),
    ],
)
def test_no_sources(folder: Path, data_path: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        find_sources(data_path)


# Texts


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("one", [(1, "one")]),
        ("\n\none\n two\n\n", [(3, "one\n two")]),
        ("one\n<|endoftext|>\ntwo\r\n\r\nthree\r\n", [(1, "one"), (3, "two\r\n\r\nthree")]),
        ("one\n<|endoftext|> \r\n \n<|endoftext|>\n \n  two \n ", [(1, "one"), (6, "  two")]),
        ("a <|endoftext|> b\n", [(1, "a <|endoftext|> b")]),
        ("\ufeffone\n", [(1, "one")]),
        ("\n \n", []),
    ],
)
def test_texts_of_a_file(tmp_path: Path, content: str, texts: list) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content.encode())
    assert [(raw.line, raw.content) for raw in raws(path)] == texts
    assert all(raw.begins and raw.ends for raw in raws(path))


@pytest.mark.parametrize("size", [1, 3, 9, 10, 11, 20, 21, 35])
def test_long_texts_come_in_blocks(tmp_path: Path, size: int) -> None:
    text = ("é23 56\n\n9" * 4)[:size]
    path = tmp_path / "a.txt"
    path.write_text(f"\n{text}\n\n\n\n\n\n\n\n\n\n\n<|endoftext|>\nnext\n", encoding="utf-8")
    text = text.rstrip()
    *parts, last = raws(path, block_chars=10)
    assert last.content == "next"
    blocks = [text[i : i + 10] for i in range(0, len(text), 10)]
    assert [part.content for part in parts] == blocks
    assert [part.begins for part in parts] == [True] + [False] * (len(blocks) - 1)
    assert [part.ends for part in parts] == [False] * (len(blocks) - 1) + [True]
    assert {part.line for part in parts} == {2}


def test_a_long_text_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("word\n" * 1000 + "\xff")
    path.write_bytes(path.read_bytes() + b"\xff\n")
    reading = read_raw(path, BadLines(path, skip=False), block_chars=100)
    assert sum(len(next(reading).content) for _ in range(49)) == 4900
    with pytest.raises(ValueError, match="line 1001: its byte 3, 0xff, is not UTF-8"):
        list(reading)


# Lines

ADD = {"type": "function", "function": {"name": "add", "description": "Adds"}}
CALLING = [
    {"role": "user", "content": "the"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "content": "1"},
    {"role": "assistant", "content": "one"},
]


@pytest.mark.parametrize(
    ("line", "content"),
    [
        ({"text": " a\n"}, " a\n"),
        ({"text": "a", "id": 3, "meta": {"messages": 1}}, "a"),
        (
            {"prompt": "p", "response": "r", "cat": "x"},
            ([{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}], []),
        ),
        ({"messages": DIALOG}, (DIALOG, [])),
        ({"messages": DIALOG, "tools": None, "id": 3}, (DIALOG, [])),
        ({"messages": CALLING, "tools": [ADD]}, (CALLING, [ADD])),
    ],
)
def test_lines(line: dict, content: object) -> None:
    assert parse_line(json.dumps(line).encode()) == content


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "not JSON: Expecting ',' delimiter at character 13"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "a JSON list, where each line should be an object"),
        ('"text"', "a JSON str, where"),
        ("{}", "one of text, prompt with response, or messages, and has no key"),
        ('{"id": 1, "content": "a"}', "and has id, content"),
        ('{"prompt": "a"}', "and has prompt"),
        ('{"text": "a", "messages": []}', "and has text, messages"),
        ('{"text": "a", "prompt": "a", "response": "b"}', "and has text, prompt, response"),
        ('{"text": ["a"]}', r"text should be a string: \['a'\]"),
        ('{"prompt": "a", "response": null}', "response should be a string: None"),
        ('{"messages": {"role": "user"}}', "messages should be a list: {'role'"),
        ('{"messages": []}', "the dialog is empty"),
        ('{"messages": ["a"]}', "message 0 must be a dict .* got 'a'"),
        ('{"messages": [{"role": "me", "content": "a"}]}', "message 0 has the unknown role 'me'"),
        ('{"messages": [{"role": "user", "content": 1}]}', "message 0: content must be a str"),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": "a"}', "tools must be a list"),
    ],
)
def test_bad_lines(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_line(line.encode())


def test_calls_count_in_the_loss_and_definitions_do_not(tokenizer: Tokenizer) -> None:
    for tool_format in get_args(ToolFormat):
        line = json.dumps({"messages": CALLING, "tools": [ADD]}).encode()
        document = raw_document(tokenizer, Raw(1, line), tool_format)
        assert document is not None
        chat = ChatFormat(tokenizer, tool_format)
        prompts = [chat.encode_dialog_prompt(CALLING[:end], [ADD]) for end in (1, 3)]
        tokens, in_loss = document.tokens.tolist(), document.loss_mask.tolist()
        for prompt in prompts:
            assert tokens[: len(prompt)] == prompt
            assert not in_loss[len(prompt) - 1]
            assert in_loss[len(prompt)]
        learned = [t for t, counts in zip(tokens, in_loss, strict=True) if counts]
        call = {"json": '{"name": "add", "parameters": {"a": 1}}', "pythonic": "[add(a=1)]"}
        assert tokenizer.decode(learned) == f"{call[tool_format]}<|eot_id|>one<|eot_id|>"


def test_an_answer_may_be_only_a_call(tokenizer: Tokenizer) -> None:
    assert dialog_document(tokenizer, CALLING[:2]).loss_mask.any()


def test_what_is_made_of_a_line(tokenizer: Tokenizer, llama2: Tokenizer) -> None:
    def made(line: dict, by: Tokenizer = tokenizer) -> list[int] | None:
        document = raw_document(by, Raw(1, json.dumps(line).encode()))
        return None if document is None else document.tokens.tolist()

    assert made({"text": "a\ud800"}) == tokenizer.encode("a\ufffd", bos=True, eos=True)
    assert made({"text": " \n"}) is None
    assert made({"messages": DIALOG}) == dialog_document(tokenizer, DIALOG).tokens.tolist()
    pair = dialog_document(tokenizer, DIALOG[1:3]).tokens.tolist()
    assert made({"prompt": "123", "response": "hello"}) == pair
    with pytest.raises(ValueError, match="no answer"):
        made({"prompt": "123", "response": " "})
    with pytest.raises(ValueError, match=r"message 0 contains \[INST\], a tag"):
        made({"prompt": "[INST]", "response": "a"}, llama2)


def test_texts_for_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("one\n<|endoftext|>\ntwo")
    bad = b'{"text": "caf\xe9"}\n'
    lines.write_bytes(
        b'{"text": "three"}\n\n' + bad + b"?\n" + json.dumps({"messages": DIALOG[:3]}).encode()
    )
    texts = read_texts([text, lines])
    assert [next(texts) for _ in range(3)] == ["one", "two", "three"]
    with pytest.raises(ValueError, match=r"b.jsonl, line 3: its byte 14, 0xe9, is not UTF-8; if"):
        next(texts)
    found = list(read_texts([text, lines], skip_bad_lines=True))
    assert found == ["one", "two", "three", "the", "123", " hello "]
    said = capsys.readouterr().err
    assert f"{lines}: 2 bad line(s) skipped, first line 3: its byte 14" in said
    assert str(text) not in said


def test_a_line_of_text_that_is_not_utf_8_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one\ncafé\ntwo\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.txt, line 2: its byte 4, 0xe9, .* `iconv -f LATIN1"):
        raws(path)
    bad = BadLines(path, skip=True)
    assert [raw.content for raw in read_raw(path, bad)] == ["one\ntwo"]
    assert (bad.count, bad.first[:8]) == (1, "line 2: ")


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.* is empty"),
        (codecs.BOM_UTF8, "a.* is empty"),
        ("\ufefftext".encode("utf-16-le"), "a.* is UTF-16, not UTF-8: .* `iconv -f UTF-16"),
        ("\ufefftext".encode("utf-16-be"), "a.* is UTF-16, not UTF-8"),
        ("text".encode("utf-16-le"), "a.* holds zero bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a.* is a git-lfs pointer"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        raws(path, skip=True)


def test_a_file_is_read_as_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n<|endoftext|>\ntwo\n")
    texts = read_raw(path, BadLines(path, skip=False))
    assert next(texts).content == "one"
    with path.open("a") as file:
        file.write("<|endoftext|>\n" + "x" * 20_000)
    assert [raw.content for raw in texts] == ["two", "x" * 20_000]
