"""Tokens as a person reads them."""

from pathlib import Path

import pytest
from fixtures import write_sentencepiece
from rich.cells import cell_len

from llama.errors import InputError
from llama.inspection.token_texts import TokenTexts, visible
from llama.tokenizer import ChatFormat, Tokenizer


def test_text_is_in_quotes_and_a_special_token_has_its_name(tokenizer: Tokenizer) -> None:
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode("hello world'\n\n", bos=True)
    expected = ["<|begin_of_text|>", "'hello'", "' world'", '''"'"''', r"'\n\n'"]
    assert [texts[token] for token in ids] == expected


def test_a_part_of_a_character_is_its_bytes(tokenizer: Tokenizer) -> None:
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode("你😀")
    assert [texts[token] for token in ids] == [
        *("<0xE4>", "<0xBD>", "<0xA0>"),
        *("<0xF0><0x9F>", "<0x98>", "<0x80>"),
    ]
    assert texts.joined(ids) == "你😀"
    assert texts.joined(ids[:-1]) == "你<0xF0><0x9F><0x98>"


def test_text_that_looks_like_a_special_token_is_not_shown_as_one(tokenizer: Tokenizer) -> None:
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode("<|eot_id|>")
    assert "<|eot_id|>" not in [texts[token] for token in ids]


def test_an_id_that_does_not_exist(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=f"token id {tokenizer.n_words} is not within"):
        TokenTexts(tokenizer)[tokenizer.n_words]


def test_sentencepiece(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_sentencepiece(tmp_path / "tokenizer.model"))
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode("Lily 你", bos=True)
    shown = [texts[token] for token in ids]
    assert shown[0] == "<s>"
    assert shown[-3:] == ["<0xE4>", "<0xBD>", "<0xA0>"]
    assert shown[1].startswith("' ")
    assert texts.joined(ids) == "Lily 你"


def test_lines_fit_and_a_message_begins_one(tokenizer: Tokenizer) -> None:
    dialog = [{"role": "user", "content": "hello 你 world " * 10}]
    ids = ChatFormat(tokenizer).encode_dialog_prompt(dialog)
    lines = TokenTexts(tokenizer).lines(ids, width=40).plain.split("\n")
    assert max(map(cell_len, lines)) <= 40
    headers = [line for line in lines if "<|start_header_id|>" in line]
    assert len(headers) == 2
    assert all(line.split(" ")[1] == "<|start_header_id|>" for line in headers)
    assert "<0xA0>=你" in " ".join(lines)
    numbers = [int(word) for line in lines for word in line.split() if word.isdigit()]
    assert numbers == ids


def test_control_characters_are_shown_and_not_obeyed() -> None:
    text = "a\x1b[2J\r\x07\n\tb\x9b\u2028"
    assert visible(text) == r"a\x1b[2J\r\x07\n\tb\x9b\u2028"
    assert visible(text, keep="\n\t") == "a\\x1b[2J\\r\\x07\n\tb\\x9b\\u2028"
