"""`llama tasks` as it is typed: arguments, files and pipes in, lines and objects out."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama import Llama
from llama.tasks import ClassifierHead, answer, classify, translate

LABELS = ["积极", "消极"]
TEXTS = ["hello the world", "很好吃", "user"]
EXAMPLES = [("hello the world", "积极"), ("the user", "消极"), ("hello", "积极")]

Run = Callable[..., tuple[int, str, str]]


def write_lines(path: Path, lines: list[Any]) -> Path:
    texts = [
        line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines
    ]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


@pytest.fixture
def tasks(run_command: Run, folder: Path) -> Run:
    """Calls a verb with the random model."""

    def run(verb: str, *words: str | Path) -> tuple[int, str, str]:
        flags = ("--model", folder, "--device", "cpu", "--dtype", "float32")
        return run_command("tasks", verb, *words, *flags)

    return run


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes bytes the standard input."""
    opened = []

    def put(data: bytes) -> None:
        (tmp_path / "stdin").write_bytes(data)
        stream = open(tmp_path / "stdin", encoding="utf-8")  # noqa: SIM115
        opened.append((stream, os.dup(0)))
        os.dup2(stream.fileno(), 0)
        monkeypatch.setattr("sys.stdin", stream)

    yield put
    for stream, kept in opened:
        os.dup2(kept, 0)
        os.close(kept)
        stream.close()


def test_classify_prints_a_line_for_each_text(tasks: Run, llama: Llama) -> None:
    code, out, err = tasks("classify", *TEXTS, "--labels", "积极,消极")
    assert (code, err) == (0, "")
    expected = classify(llama, TEXTS, LABELS)
    assert out.splitlines() == [f"{each.label}\t{each.score:.3f}" for each in expected]
    assert tasks("classify", *TEXTS, "--labels", "积极， 消极")[1] == out


def test_classify_prints_objects_and_takes_all_settings(
    tasks: Run, llama: Llama, tmp_path: Path
) -> None:
    shown = write_lines(tmp_path / "shown.jsonl", [{"text": t, "label": n} for t, n in EXAMPLES])
    words = ("--labels", "积极,消极", "--examples", shown, "--instruction", "Hm?", "--json")
    flags = ("--no-chat", "--no-calibrate", "--no-normalize")
    code, out, _ = tasks("classify", *TEXTS, *words, *flags)
    assert code == 0
    settings = {"chat": False, "calibrate": False, "normalize": False}
    expected = classify(llama, TEXTS, LABELS, EXAMPLES, instruction="Hm?", **settings)
    for text, line, result in zip(TEXTS, out.splitlines(), expected, strict=True):
        assert text in line  # no escapes
        found = {"label": result.label, "score": result.score, "scores": result.scores}
        assert json.loads(line) == {"text": text, **found}


def test_texts_come_from_a_pipe_or_a_file(tasks: Run, piped: Any, tmp_path: Path) -> None:
    expected = tasks("classify", *TEXTS, "--labels", "积极,消极")[1]
    piped("\ufeff{}\r\n{}\n{}".format(*TEXTS).encode())
    assert tasks("classify", "--labels", "积极,消极") == (0, expected, "")
    lines = write_lines(tmp_path / "texts.txt", list(TEXTS))
    assert tasks("classify", "--labels", "积极,消极", "--file", lines)[1] == expected
    objects = write_lines(tmp_path / "texts.jsonl", [{"text": text, "id": 3} for text in TEXTS])
    assert tasks("classify", "--labels", "积极,消极", "--file", objects) == (0, expected, "")


def test_train_writes_a_head_that_classifies(tasks: Run, llama: Llama, tmp_path: Path) -> None:
    entries = [{"text": text, "label": label} for text, label in EXAMPLES]
    data = write_lines(tmp_path / "data.jsonl", entries)
    head = tmp_path / "head.json"
    code, out, err = tasks("train", data, "--out", head, "--valid_data", data, "--l2", "0.1")
    assert (code, err) == (0, "")
    assert f"{head}: 积极, 消极, of 3 examples" in out
    assert "right of 3 held-out texts: 100.0%" in out
    assert ClassifierHead.open(head).labels == LABELS
    code, out, err = tasks("classify", "--head", head, "--file", data, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert [(each["text"], each["label"]) for each in found] == EXAMPLES
    assert [each["given_label"] for each in found] == [label for _, label in EXAMPLES]
    assert err == "100.0% of 3 labels are those of the file\n"


def test_train_writes_an_adapter_that_classifies(
    tasks: Run, run_command: Run, folder: Path, tmp_path: Path
) -> None:
    entries = [{"text": text, "label": label} for text, label in EXAMPLES]
    data, out = write_lines(tmp_path / "data.jsonl", entries), tmp_path / "adapter"
    flags = ("--epochs", "1", "--lora_r", "2", "--valid_data", data, "--instruction", "?")
    words = ("--model", folder, "--device", "cpu")
    code, printed, err = run_command("tasks", "train", data, "--lora", "--out", out, *flags, *words)
    assert code == 0, err
    assert f"{out}: an adapter for 积极, 消极, of 3 examples" in printed
    assert "right of 3 held-out texts: " in printed
    flags = ("--labels", "积极,消极", "--no-calibrate", "--instruction", "?")
    code, printed, err = tasks("classify", "hello", "--adapter", out, *flags)
    assert (code, err) == (0, "")
    assert tasks("classify", "hello", "--adapter", out) == (0, printed, "")
    code, _, err = tasks("classify", "hello", "--adapter", out, "--instruction", "?")
    assert "are for --labels, not for an --adapter alone" in err


def test_answer_prints_what_the_function_returns(tasks: Run, llama: Llama, tmp_path: Path) -> None:
    questions = ["the user?", "hello?"]
    words = ("--context", "the world", "--max_gen_len", "4")
    code, out, err = tasks("answer", *questions, *words, "--json")
    assert code == 0
    expected = answer(llama, questions, "the world", max_gen_len=4)
    for question, line, result in zip(questions, out.splitlines(), expected, strict=True):
        found = json.loads(line)
        assert found.pop("question") == question
        assert found == {key: getattr(result, key) for key in found}
        assert found.keys() == {"text", "score", "support", "finish_reason"}
    cut = sum(result.finish_reason == "length" for result in expected)
    assert cut
    assert err == f"{cut} of 2 are cut off at 4 tokens (max_gen_len)\n"
    (tmp_path / "context.md").write_text("the world")
    lines = tasks("answer", *questions, "--context_file", tmp_path / "context.md", *words[2:])[1]
    scores = [line.rpartition("\t")[2] for line in lines.splitlines()]
    assert scores == [f"{result.score:.3f}" for result in expected]
    entries = [{"question": question, "context": "the world"} for question in questions]
    data = write_lines(tmp_path / "data.jsonl", entries)
    assert tasks("answer", "--file", data, *words[2:])[1] == lines


def test_translate_prints_what_the_function_returns(tasks: Run, llama: Llama) -> None:
    for beams in (1, 2):
        words = ("--to", "German", "--source", "en", "--beams", str(beams), "--max_gen_len", "3")
        code, out, err = tasks("translate", *TEXTS, *words, "--json")
        assert code == 0, err
        options: dict[str, Any] = {"source": "en", "beams": beams, "max_gen_len": 3}
        expected = translate(llama, TEXTS, "de", **options)
        found = [json.loads(line) for line in out.splitlines()]
        assert [each["text"] for each in found] == [each.text for each in expected]
        assert [each["score"] for each in found] == [each.score for each in expected]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("classify", "a"), "give --labels, with commas between them, a trained --head or"),
        (("classify", "a", "--labels", "x,y", "--head", "h"), "give --labels, with commas"),
        (("classify", "a", "--labels", "x"), "labels is only 'x': give at least two"),
        (("classify", "a", "--labels", "x,,y"), "labels[1] is empty"),
        (("classify", "a", "--labels", "x,y", "--file", "f.txt"), "give texts or --file f.txt"),
        (("classify", "--labels", "x,y", "--file", "none.txt"), "none.txt is not there"),
        (("classify", "a", "--head", "none.json"), "none.json is not there; `llama tasks train`"),
        (("classify", "a", "--head", "h", "--instruction", "x"), "are for --labels, not for a"),
        (("classify", "a", "--labels", "x,y", "--examples", "e.txt"), "e.txt should be a .jsonl"),
        (("classify", "--labels", "x,y", "--file", "{blank}"), "blank.txt: line 2 is blank"),
        (("classify", "--labels", "x,y", "--file", "{empty}"), "empty.txt is empty: give at"),
        (("classify", "--labels", "x,y", "--file", "{json}"), "jsonl:2: lacks 'text'; it has txt"),
        (("classify", "--labels", "x,y", "--file", "{broken}"), "broken.jsonl:1: this line is not"),
        (("classify", "--labels", "x,y", "--file", "{list}"), "jsonl:1: should be a JSON object"),
        (("classify", "--labels", "x,y", "--file", "{number}"), "text should be a string that is"),
        (("answer", "a", "--context", "b", "--context_file", "c"), "--context_file, not both"),
        (("answer", "--file", "{mixed}"), "has a context for 1 of 2 questions only"),
        (("answer", "--file", "{mixed}", "--context", "b"), "has contexts of its own"),
        (("translate", "a", "--to", "xx"), "unknown language 'xx'"),
        (("train", "{data}", "--out", "h", "--lora_r", "3"), "--lora_r is for an adapter"),
        (("train", "{data}", "--out", "h", "--labels", "a,b"), "label '积极' is none of a, b"),
        (("train", "{data}", "--out", "h", "--lora"), "--dtype are not for training an adapter"),
    ],
)
def test_wrong_input_ends_in_one_message(
    tasks: Run, words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    files = {
        "blank": write_lines(tmp_path / "blank.txt", ["a", " ", "b"]),
        "empty": write_lines(tmp_path / "empty.txt", []),
        "json": write_lines(tmp_path / "some.jsonl", [{"text": "a"}, {"txt": "b"}]),
        "broken": write_lines(tmp_path / "broken.jsonl", ["{"]),
        "list": write_lines(tmp_path / "list.jsonl", [["a"]]),
        "number": write_lines(tmp_path / "number.jsonl", [{"text": 5}]),
        "mixed": write_lines(
            tmp_path / "mixed.jsonl", [{"question": "a", "context": "b"}, {"question": "c"}]
        ),
        "data": write_lines(
            tmp_path / "data.jsonl", [{"text": text, "label": label} for text, label in EXAMPLES]
        ),
    }
    code, out, err = tasks(words[0], *(word.format(**files) for word in words[1:]))
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_nothing_waits_for_texts_that_do_not_come(tasks: Run, piped: Any) -> None:
    piped(b"")
    assert "standard input is empty" in tasks("classify", "--labels", "x,y")[2]
    piped(b"\xff\xfe")
    assert "standard input is not UTF-8 text" in tasks("classify", "--labels", "x,y")[2]
    with open(os.devnull) as null:
        kept = os.dup(0)
        os.dup2(null.fileno(), 0)
        try:
            code, _, err = tasks("translate")
        finally:
            os.dup2(kept, 0)
            os.close(kept)
    assert (code, "no text: give it as an argument, with --file or through a pipe" in err) == (
        1,
        True,
    )
