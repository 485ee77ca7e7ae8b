"""`llama eval`: what it reads, what it says, on one rank and on two."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from fixtures import SENTENCES, run_ranks

from llama import Llama
from llama.evaluation.evaluate import evaluate, read_documents, read_questions
from llama.evaluation.scoring import Question, score_choices, score_texts

QUESTIONS = [
    Question("Once upon a time there was", ["the ball", "a little girl", "123"], 1),
    Question("She liked", ["to play with her dog", "to run"], 0),
    Question("The dog", ["said nothing", "er"], 1),
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "held-out.txt"
    path.write_text("\n<|endoftext|>\n".join(SENTENCES[:4]), encoding="utf-8")
    return path


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(q._asdict()) + "\n" for q in QUESTIONS), encoding="utf-8")
    return path


# Files


def test_documents_are_separated_by_a_line(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(
        "\ufeffone\r\n\r\n<|endoftext|>\r\n  two\nlines <|endoftext|>\n"
        "<|endoftext|> nor here\n<|endoftext|> \t\n\n<|endoftext|>\nCrème\n<|endoftext|>".encode()
    )
    two = "two\nlines <|endoftext|>\n<|endoftext|> nor here"
    assert read_documents(str(path)) == ["one", two, "Crème"]


def test_a_text_without_separators_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\none\n\ntwo\n")
    assert read_documents(str(path)) == ["one\n\ntwo"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: give a text"),
        (b" \n<|endoftext|>\n\n", "is empty: give a text"),
        (b"\xff\xfea\0", "is not UTF-8 text: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_files_without_text(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"text.txt {message}"):
        read_documents(str(path))


def test_questions_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(
        '{"prompt": "a\u2028b", "choices": ["c", "d"], "answer": 1, "id": 7}\r\n\n'
        '{"prompt": "", "choices": ["c", "d", " e"], "answer": 0}',
        encoding="utf-8",
    )
    assert read_questions(str(path)) == [
        Question("a\u2028b", ["c", "d"], 1),
        Question("", ["c", "d", " e"], 0),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "cho', "this line is not JSON: Unterminated"),
        ("[" * 100_000, "this line is not JSON"),
        ("3", "should be a JSON object, not 3"),
        ("{}", "lacks 'prompt'; it has nothing"),
        ('{"question": "a", "choices": ["b"]}', "lacks 'prompt'; it has question, choices"),
        ('{"prompt": "a", "choices": ["b", "c"]}', "lacks 'answer'; it has prompt, choices"),
        ('{"prompt": 3, "choices": ["b", "c"], "answer": 0}', "prompt should be a string, not 3"),
        ('{"prompt": "a", "choices": ["b"], "answer": 0}', "choices should be two or more"),
        ('{"prompt": "a", "choices": "bc", "answer": 0}', "choices should be two or more"),
        ('{"prompt": "a", "choices": ["b", 3], "answer": 0}', "choices should be two or more"),
        ('{"prompt": "a", "choices": ["b", " "], "answer": 0}', "choices should be two or more"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "a choice, 0 to 1, not 2"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": -1}', "a choice, 0 to 1, not -1"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": true}', "a choice, 0 to 1, not True"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": "c"}', "a choice, 0 to 1, not 'c'"),
    ],
)
def test_a_bad_line_is_named(choices: Path, line: str, message: str) -> None:
    with choices.open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=rf"questions.jsonl:5: .*{message}"):
        read_questions(str(choices))


def test_a_file_without_questions(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n \n")
    with pytest.raises(ValueError, match=r"q.jsonl is empty: give at least one question"):
        read_questions(str(tmp_path / "q.jsonl"))


# The command


def test_what_it_prints_and_writes(
    checkpoint: Path,
    llama: Llama,
    text: Path,
    choices: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "scores.json"
    settings = {"text": str(text), "choices": str(choices), "device": "cpu"}
    evaluate(str(checkpoint), **settings, output=str(output))
    out, err = capsys.readouterr()
    score = score_texts(llama.model, llama.tokenizer, SENTENCES[:4])
    right = score_choices(llama.model, llama.tokenizer, QUESTIONS)
    assert 0 < right.acc < 1
    assert out.splitlines() == [
        f"{text}: 4 documents, {score.tokens} tokens, {score.bytes} bytes",
        f"  bits per byte  {score.bits_per_byte:.4f}",
        f"  perplexity     {score.perplexity:,.3f} per token",
        f"{choices}: 3 questions",
        f"  acc            {right.acc:.4f} ± {right.acc_stderr:.4f}",
        f"  acc_norm       {right.acc_norm:.4f} ± {right.acc_norm_stderr:.4f}, "
        "by likelihood per byte",
    ]
    assert json.loads(output.read_text()) == {
        "path": str(checkpoint),
        "adapter": None,
        "quantize": None,
        "dtype": "float32",
        "device": "cpu",
        "ranks": 1,
        "max_seq_len": 64,
        "text": {
            "file": str(text),
            "documents": 4,
            **asdict(score),
            "bits_per_byte": score.bits_per_byte,
            "perplexity": score.perplexity,
        },
        "choices": {"file": str(choices), "chat": False, **asdict(right)},
    }
    assert err == ""
    evaluate(str(checkpoint), **settings, as_json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(output.read_text())


def test_settings_reach_the_model(
    checkpoint: Path, text: Path, choices: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(
        str(checkpoint),
        text=str(text),
        choices=str(choices),
        chat=True,
        quantize="int8",
        max_seq_len=40,
        batch_tokens=100,
        device="cpu",
        tokenizer_path=str(checkpoint / "tokenizer.model"),
        as_json=True,
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["quantize"], found["dtype"], found["max_seq_len"]) == ("int8", "bfloat16", 40)
    built = Llama.build(checkpoint, max_seq_len=40, device="cpu", quantize="int8")
    score = score_texts(built.model, built.tokenizer, SENTENCES[:4], 100)
    assert found["text"]["nats"] == score.nats
    right = score_choices(built.model, built.tokenizer, QUESTIONS, 100, chat=True)
    assert found["choices"] == {"file": str(choices), "chat": True, **asdict(right)}


def test_an_adapter_is_loaded_with_it(text: Path) -> None:
    with pytest.raises(FileNotFoundError, match="my-adapter"):
        evaluate("params/tiny", text=str(text), adapter="my-adapter")


def test_a_single_question_has_no_standard_error(
    checkpoint: Path, choices: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choices.write_text(choices.read_text().splitlines()[0])
    evaluate(str(checkpoint), choices=str(choices), device="cpu", output=f"{choices}.json")
    found = json.loads(Path(f"{choices}.json").read_text())
    assert f"  acc            {found['choices']['acc']:.4f}\n" in capsys.readouterr().out
    assert found["choices"]["acc_stderr"] is None
    assert "text" not in found


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to measure: give --text FILE, --choices FILE or --tasks a,b"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
        (["--choices", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--text", __file__, "--batch_tokens", "0"], "Must be > 0"),
        (["--text", __file__, "--batch_tokens", "many"], '"many"'),
        (["--text", __file__, "--max_seq_len", "1.5"], '"1.5"'),
        (["--text", __file__, "--limit", "3"], "--limit is for lm-eval's tasks"),
        (["--text", __file__, "--num_fewshot", "0"], "--num_fewshot is for lm-eval's tasks"),
        (["--text", __file__, "--include_path", "."], "--include_path is for lm-eval's"),
        (["--text", __file__, "--chat"], "--chat is for --choices and --tasks"),
        (["--text", __file__, "--output", "nowhere/a.json"], "--output nowhere/a"),
        (["--texts", __file__], "Did you mean --text?"),
    ],
)
def test_wrong_flags_are_found_before_anything_is_loaded(
    run_command: Callable, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.setattr(Llama, "build", lambda *args, **settings: pytest.fail("was loaded"))
    code, out, err = run_command("eval", "params/tiny", *flags)
    assert code in (1, 2)
    assert out == ""
    assert message in err


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Llama, "build", lambda *args, **settings: pytest.fail("was loaded"))
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "llama.evaluation.lm_eval_model", raising=False)
    monkeypatch.delattr("llama.evaluation.lm_eval_model", raising=False)
    with pytest.raises(ValueError, match=r"--tasks needs lm-eval.*pip install lm-eval"):
        evaluate("params/tiny", tasks="hellaswag")


def test_as_it_is_typed(run_command: Callable, checkpoint: Path, text: Path, llama: Llama) -> None:
    flags = ["--text", text, "--device", "cpu", "--json"]
    code, out, err = run_command("eval", checkpoint, *flags)
    assert (code, err) == (0, "")
    score = score_texts(llama.model, llama.tokenizer, SENTENCES[:4])
    assert json.loads(out)["text"]["bits_per_byte"] == pytest.approx(score.bits_per_byte)


def evaluate_on_a_rank(checkpoint: str, text: str, choices: str, output: str) -> str:
    """What one rank prints."""
    settings = {"text": text, "choices": choices, "output": output + os.environ["RANK"]}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        evaluate(checkpoint, **settings, device="cpu", as_json=True)
    return out.getvalue()


def test_ranks_share_the_work_and_one_speaks(
    checkpoint: Path,
    text: Path,
    choices: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (str(checkpoint), str(text), str(choices))
    evaluate(arguments[0], text=arguments[1], choices=arguments[2], device="cpu", as_json=True)
    alone = json.loads(capsys.readouterr().out)
    first, second = run_ranks(2, evaluate_on_a_rank, *arguments, str(tmp_path / "scores"))
    assert second == ""
    found = json.loads(first)
    assert found["ranks"] == 2
    assert found["text"].pop("file") == alone["text"].pop("file")
    assert found["text"] == pytest.approx(alone["text"], rel=1e-5)
    assert found["choices"] == alone["choices"]
    assert json.loads((tmp_path / "scores0").read_text()) == json.loads(first)
    assert not (tmp_path / "scores1").exists()
