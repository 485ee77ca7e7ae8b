"""Asks a model the questions written by hand and prints how many of each skill it answers.

    python -m examples.tiny_questions params/tiny --failures failures.txt
    python -m examples.tiny_questions params/tiny --dialogs

The second prints, in Markdown, the twenty dialogs of `dialogs.json` with the model's answers.
"""

from pathlib import Path

from examples.tiny_questions import FOLDER, ask, read_questions, scored, table, transcripts
from llama import Llama
from llama.cli import run


def main(
    model: str,
    file: str = str(FOLDER / "questions.jsonl"),
    failures: str = "",
    dialogs: bool = False,
) -> None:
    """Asks the questions of a file, at temperature 0.

    Args:
        model: folder of the checkpoint.
        file: questions, one a line.
        failures: file for what was asked, answered and wanted where the answer is wrong.
        dialogs: hold the twenty dialogs instead, and print them.
    """
    llama = Llama.build(model)
    if dialogs:
        print(transcripts(llama))
        return
    questions = read_questions(Path(file))
    scores, wrong = scored(questions, ask(llama, questions))
    print(table(scores))
    if failures:
        Path(failures).write_text("\n\n".join([*wrong, ""]), encoding="utf-8")


if __name__ == "__main__":
    run(main)
