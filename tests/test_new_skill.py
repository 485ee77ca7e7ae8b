"""The example that teaches the bundled model something new."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from examples import new_skill


def test_an_answer_spells_the_word_and_tells_its_vowels() -> None:
    assert len(new_skill.WORDS) >= 350
    for word in new_skill.WORDS:
        question, answer = (message["content"] for message in new_skill.dialog(word))
        assert question == f"Which vowels are in {word}?"
        letters, told = answer.split("\n")
        assert letters == word.upper().replace("", "-")[1:-1]
        found = re.findall("[aeiou]", word.lower())
        assert found
        assert told == f"Vowels: {', '.join(found).upper()}."


def test_no_dialog_for_the_bundled_model_is_about_vowels() -> None:
    folder = Path(new_skill.__file__).parent / "tiny_data"
    for wordings in folder.glob("*.txt"):
        assert "vowel" not in wordings.read_text()


def test_an_adapter_is_trained_and_asked_about_other_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, right_answers = [], new_skill.right_answers
    monkeypatch.setattr(new_skill, "CONFIG", replace(new_skill.CONFIG, epochs=1))
    monkeypatch.setattr(
        *(new_skill, "right_answers"),
        lambda llama, dialogs: asked.append(dialogs) or right_answers(llama, dialogs),
    )
    new_skill.main(str(tmp_path / "vowels"), examples=4, questions=3)
    assert capsys.readouterr().out.splitlines()[-1].startswith("right of 3 without the adapter: ")
    config = json.loads((tmp_path / "vowels" / "adapter_config.json").read_text())
    assert config["r"] == 16
    assert asked[0] == asked[1]
    assert len(asked[0]) == 3


def test_the_share_of_right_answers() -> None:
    class Speller:
        def chat_completion(self, dialogs: list, **settings: float) -> list:
            assert settings["temperature"] == 0
            contents = ["P-E-N\nVowels: E.", "C-U-P\nVowels: C."]
            return [{"generation": {"content": content}} for content in contents]

    assert new_skill.right_answers(Speller(), [*map(new_skill.dialog, ("pen", "cup"))]) == 0.5
