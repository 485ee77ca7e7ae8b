import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
from fixtures import SENTENCES
from tiktoken.load import load_tiktoken_bpe

from llama import Tokenizer, cli
from llama.tokenization import bpe
from llama.tokenization.bpe import train_tokenizer
from llama.training.command import tokenizer_command

HARD = [
    "",
    " ",
    SENTENCES[1],
    "  12345 + 678 = 13023\n\n\tcafé, 東京 \U0001f642\x00 <|eot_id|> </s>\r\n  x ",
    "sums 1212 2121 12 21 121 " * 3,
]
TEXTS = [*SENTENCES * 3, " ".join(str(n) for n in range(100, 300))]


def test_ranks_are_those_that_llama_3_reads(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "new" / "tokenizer.model"
    train_tokenizer(TEXTS, 450, path)
    trained = Tokenizer(path)
    assert trained.n_words == 450 + 256
    ranks = load_tiktoken_bpe(str(path))
    assert sorted(ranks.values()) == list(range(450))
    assert all(ranks[bytes([byte])] < 256 for byte in range(256))
    for text in HARD:
        assert trained.decode(trained.encode(text)) == text
    assert len(trained.encode(SENTENCES[1])) < 0.6 * len(SENTENCES[1])
    assert any(len(token) == 3 and token.isdigit() for token in ranks)


def test_digits_can_be_tokens_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.model"
    train_tokenizer(TEXTS, 400, path, digits=True)
    ranks = load_tiktoken_bpe(str(path))
    assert len(ranks) == 400
    assert not [token for token in ranks if sum(c in b"0123456789" for c in token) > 1]
    trained = Tokenizer(path)
    assert [trained.decode([i]) for i in trained.encode("=1234")] == list("=1234")
    for text in HARD:
        assert trained.decode(trained.encode(text)) == text


def test_sentencepiece_is_what_llama_2_reads(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    train_tokenizer(TEXTS, 397, path, kind="sentencepiece")
    trained = Tokenizer(path)
    assert trained.is_sentencepiece
    assert trained.n_words == 400
    assert trained.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [processor.id_to_piece(i) for i in range(400)]
    assert pieces[3:259] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert not [p for p in pieces[259:] if sum(c.isdigit() for c in p) > 1]
    for text in HARD:
        assert trained.decode(trained.encode(text)) == text
    assert len(trained.encode(SENTENCES[1])) < 0.6 * len(SENTENCES[1])
    dog = trained.encode("dog")
    assert processor.id_to_piece(dog[0]).startswith("\u2581")
    assert trained.encode("\u6771")[1:] == [3 + byte for byte in "\u6771".encode()]


def test_counted_words_give_the_same_pieces_as_lines() -> None:
    text = "\n".join([*TEXTS, "  two   three  ", "    ", "\x0bode:  x  =  1", "", "end   "] * 3)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split("\n")),
        model_writer=model,
        vocab_size=440,
        minloglevel=2,
        **bpe._LLAMA2,
    )
    expected = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    _, content = bpe._sentencepiece(iter([text]), 437, digits=False)
    found = sentencepiece.SentencePieceProcessor(model_proto=content)
    pieces = [expected.id_to_piece(i) for i in range(440)]
    assert [found.id_to_piece(i) for i in range(440)] == pieces
    assert "\u2581\u2581" in pieces


def test_what_sentencepiece_keeps_to_itself_only_parts_words() -> None:
    words = bpe._words(iter(["a b\tc\x00d\u2585e  f\n  g", "b", ""]))
    assert words == {"a": 1, "b": 2, "c": 1, "d": 1, "e": 1, " f": 1, "  g": 1}


def test_long_words_are_learned_from_too(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    train_tokenizer(["xyzzy" * 2000, *SENTENCES], 330, path, "sentencepiece")
    assert len(Tokenizer(path).encode("xyzzyxyzzy")) <= 3


@pytest.mark.parametrize("kind", ["tiktoken", "sentencepiece"])
def test_halves_of_surrogates(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("tokenizers")
    train_tokenizer([*TEXTS, "a\ud800b"], 330, tmp_path / "tokenizer.model", kind)
    assert Tokenizer(tmp_path / "tokenizer.model").n_words > 330


@pytest.mark.parametrize(
    ("texts", "n_ranks", "kind", "message"),
    [
        (TEXTS, 255, "tiktoken", "n_ranks=255: .* so vocab_size is at least 512"),
        (TEXTS, 280, "sentencepiece", "n_ranks=280: .* so vocab_size is at least 3"),
        (["\n\t", ""], 300, "sentencepiece", "the texts are blank"),
        (TEXTS, 300, "unigram", "kind 'unigram' is none of tiktoken, sentencepiece"),
    ],
)
def test_numbers_that_do_not_fit(
    tmp_path: Path, texts: list, n_ranks: int, kind: str, message: str
) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.model").write_text("old")
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, n_ranks, tmp_path / "tokenizer.model", kind)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(("kind", "size"), [("tiktoken", 513), ("sentencepiece", 265)])
def test_a_small_text_gives_a_small_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, size: int
) -> None:
    pytest.importorskip("tokenizers")
    path, special = tmp_path / "a", bpe.SPECIAL_TOKENS[kind]
    assert train_tokenizer(["ab"], 1000 - special, path, kind) == size
    assert f"{path}: {size} tokens instead of 1,000; the text" in capsys.readouterr().err
    assert Tokenizer(path).n_words == size
    assert train_tokenizer(["ab"], size - special, path, kind) == size
    assert capsys.readouterr().err == ""


def test_the_smallest_size_in_an_error_works(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match="at least") as error:
        train_tokenizer(TEXTS, 280, tmp_path / "a", "sentencepiece")
    least = int(str(error.value).rsplit(maxsplit=1)[1])
    train_tokenizer(TEXTS, least - 3, tmp_path / "a", "sentencepiece")
    assert Tokenizer(tmp_path / "a").n_words == least


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"tokenizers .*: pip install tokenizers"):
        train_tokenizer(TEXTS, 300, tmp_path / "a")
    train_tokenizer(TEXTS, 330, tmp_path / "a", "sentencepiece")  # does not need it


def test_what_is_there_is_replaced_by_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_text("old")

    def texts() -> Iterator[str]:
        yield from TEXTS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(texts(), 330, path, "sentencepiece")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]
    train_tokenizer(TEXTS, 330, path, "sentencepiece")
    assert Tokenizer(path).n_words == 333
    assert len(list(tmp_path.iterdir())) == 1


# The command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text("\n<|endoftext|>\n".join(TEXTS))
    (folder / "b.jsonl").write_text('{"prompt": "quux ", "response": "quux quux"}\n?\n' * 9)
    return folder


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tokenizer.model"
    flags = ["--data_path", str(data / "a.txt"), "--out", str(out), "--vocab_size", "400"]
    cli.main(["tokenizer", "train", *flags, "--kind", "sentencepiece"])
    assert capsys.readouterr() == (f"{out}: 400 tokens, 3 of them special\n", "")
    assert Tokenizer(out).n_words == 400


def test_dialogs_are_text_too(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers")
    out = tmp_path / "tokenizer.model"
    with pytest.raises(ValueError, match=r"b.jsonl, line 2: not JSON"):
        tokenizer_command(str(data), str(out))
    assert not out.exists()
    tokenizer_command((str(data),), str(out), vocab_size=600, digits=True, skip_bad_lines=True)
    captured = capsys.readouterr()
    assert captured.out == f"{out}: 600 tokens, 256 of them special\n"
    assert captured.err.startswith(f"{data / 'b.jsonl'}: 9 bad line(s) skipped, first line 2: no")
    trained = Tokenizer(out)
    assert trained.n_words == 600
    assert len(trained.encode(" quux")) == 1
    assert len(trained.encode("123")) == 3


def test_the_command_replaces_nothing(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="data is there already, and models may depend on it"):
        tokenizer_command(str(data / "a.txt"), str(data))
