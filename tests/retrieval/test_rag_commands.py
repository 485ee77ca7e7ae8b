"""`llama rag`, from the command line."""

import json
from pathlib import Path

import pytest

from llama.cli import main


def test_documents_are_added_searched_asked_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, note = str(tmp_path / "notes.db"), tmp_path / "hours.md"
    note.write_text("# Hours\nThe museum opens at 10:15.\n")

    def run(*arguments: str) -> str:
        main(["rag", arguments[0], index, *arguments[1:]])
        return capsys.readouterr().out

    assert run("add", str(note)) == "1 added, 0 updated, 0 unchanged\n"
    assert run("add", str(note)) == "0 added, 0 updated, 1 unchanged\n"
    assert run("list").splitlines()[1].split() == [str(note), "1"]
    question = "When does the museum open?"
    (hit,) = json.loads(run("search", question, "--json"))
    assert (hit["source"], hit["heading"]) == (str(note), "Hours")
    assert "The museum opens at 10:15." in run("search", question, "--rerank", "likelihood")
    asked = run("ask", question)
    assert asked.startswith("The museum opens at 10:15. [1]\n\n[1] ")
    assert json.loads(run("ask", question, "--json"))["is_found"] is True
    explained = run("explain", question)
    assert "BM25: 1 candidates" in explained
    assert "prompt of " in explained
    assert "Question: When does the museum open?" in explained
    assert run("rm", str(note)) == f"removed {note}\n"
    assert run("search", question) == "nothing found\n"
    assert run("ask", question) == "Not in the documents.\n"


def test_errors_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, bad = str(tmp_path / "notes.db"), tmp_path / "bad.txt"
    bad.write_bytes(b"\0")
    for arguments, reason in (
        (["search", index, "x"], "there is no index"),
        (["add", index], "nothing to add"),
        (["add", index, "x", "--embed", "magic"], "--embed is model or the address"),
        (["add", index, "x", "--embed", "http://h/v1"], "needs --embed_model"),
        (["add", index, str(bad)], "bad.txt: it is no text"),
        (["rm", index], "nothing to remove"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["rag", *arguments])
        assert ended.value.code == 1
        assert reason in capsys.readouterr().err
