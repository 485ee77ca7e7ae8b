import json
import math
import random
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from fixtures import SENTENCES, tiny_args
from tiktoken.load import load_tiktoken_bpe

from llama import Llama, Tokenizer, Transformer
from llama.training import (
    Document,
    TrainConfig,
    bits_per_byte,
    dialog_document,
    loop,
    text_document,
    train,
    train_tokenizer,
)
from llama.training.data import collate, epoch, epochs, fit
from llama.training.loop import learning_rate

CONFIG = TrainConfig(
    steps=30, batch_tokens=256, learning_rate=1e-2, warmup_steps=5, eval_every=10, save_every=10
)


def numbered(sizes: list[int]) -> list[Document]:
    return [Document(torch.arange(size), torch.ones(size, dtype=torch.bool)) for size in sizes]


def documents(tokenizer: Tokenizer) -> list[Document]:
    return [text_document(tokenizer, text) for text in SENTENCES for _ in range(8)]


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_text_is_learned_with_its_end(tokenizer: Tokenizer) -> None:
    document = text_document(tokenizer, "hello")
    assert document.tokens.tolist() == tokenizer.encode("hello", bos=True, eos=True)
    assert document.learn.tolist() == [False] + [True] * (len(document) - 1)


def test_of_a_dialog_the_answers_and_their_ends_are_learned(tokenizer: Tokenizer) -> None:
    document = dialog_document(
        tokenizer,
        [
            {"role": "user", "content": "123"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "the"},
            {"role": "assistant", "content": " world "},
        ],
    )
    learned = document.tokens[document.learn].tolist()
    assert tokenizer.decode(learned) == "hello<|eot_id|>world<|eot_id|>"
    assert tokenizer.decode(document.tokens.tolist()).startswith("<|begin_of_text|><|start_header")


def test_long_documents_are_cut_and_nothing_is_lost() -> None:
    pieces = fit(numbered([25, 11, 1]), max_len=10)
    assert [piece.tokens.tolist() for piece in pieces] == [
        list(range(11)),
        list(range(10, 21)),
        list(range(20, 25)),
        list(range(11)),
        [0],
    ]


def test_an_epoch_has_each_document_once_in_batches_that_fit() -> None:
    sizes = [random.Random(0).randint(2, 120) for _ in range(500)] + [900]
    batches = epoch(numbered(sizes), batch_tokens=512, seed=3)
    assert sorted(index for batch in batches for index in batch) == list(range(501))
    padded = [collate([numbered(sizes)[i] for i in batch])[0].numel() for batch in batches]
    assert sum(size > 512 for size in padded) == 1  # the one of 900
    assert sum(padded) < 1.35 * sum(sizes)
    assert epoch(numbered(sizes), 512, seed=3) == batches != epoch(numbered(sizes), 512, seed=4)


def test_batches_go_on_with_other_epochs() -> None:
    few = numbered([5, 6, 7])
    batches = list(islice(epochs(few, 32, seed=0), 9))
    assert sorted(map(tuple, batches[3:6])) == sorted(map(tuple, batches[:3]))
    assert batches[:3] != batches[3:6] or batches[3:6] != batches[6:]


def test_targets_are_the_next_tokens_that_are_to_be_learned() -> None:
    long, short = numbered([5, 3])
    long = replace(long, learn=torch.tensor([False, False, True, True, False]))
    inputs, targets = collate([long, short])
    assert inputs.shape == targets.shape
    assert inputs[:, :4].tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert targets[:, :4].tolist() == [[-100, 2, 3, -100], [1, 2, -100, -100]]
    assert (targets[:, 4:] == -100).all()


def test_the_learning_rate_warms_up_and_falls_to_its_end() -> None:
    config = TrainConfig(learning_rate=1.0, final_learning_rate=0.1, warmup_steps=10)
    rates = [learning_rate(config, step, 110) for step in (0, 4, 9, 10, 60, 110, 500)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.55, 0.1, 0.1])


def test_bits_per_byte_of_a_model_that_knows_nothing(tokenizer: Tokenizer) -> None:
    blank = Transformer(tiny_args(vocab_size=tokenizer.n_words, max_seq_len=16))
    blank.output.weight.data.zero_()
    texts = ["hello é", "the world " * 9]
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    expected = tokens * math.log2(tokenizer.n_words) / size
    assert bits_per_byte(blank, tokenizer, texts, 64) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="no text to score"):
        bits_per_byte(blank, tokenizer, [])


def test_training_learns_and_writes_a_checkpoint_that_runs(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    args = tiny_args(vocab_size=tokenizer.n_words, max_seq_len=64, dim=64)
    config = replace(CONFIG, steps=120, batch_tokens=512, learning_rate=3e-3)
    train(args, tokenizer.model_path, documents(tokenizer), SENTENCES[:1], tmp_path, config)
    run = losses(tmp_path)
    assert len(run) == 120
    assert run[0] == pytest.approx(math.log(tokenizer.n_words), rel=0.05)
    assert run[-1] < 0.5 * run[0]
    bits = [
        json.loads(line)["bits_per_byte"]
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
        if "bits_per_byte" in line
    ]
    assert len(bits) == 12
    model = Llama.build(tmp_path, dtype="float32", device="cpu")
    measured = bits_per_byte(model.model, tokenizer, SENTENCES[:1])
    assert measured == pytest.approx(bits[-1], rel=0.02)  # it was stored in bfloat16
    assert torch.equal(model.model.output.weight, model.model.tok_embeddings.weight)


def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = tiny_args(vocab_size=tokenizer.n_words, max_seq_len=64)
    call = (args, tokenizer.model_path, documents(tokenizer), [])
    train(*call, tmp_path / "whole", CONFIG)
    update = loop._Run.update

    def interrupted(run: loop._Run, *batch: object) -> tuple[float, float]:
        if run.step == 16:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C
        return update(run, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(*call, tmp_path / "parts", CONFIG)
    assert len(losses(tmp_path / "parts")) == 17
    train(*call, tmp_path / "parts", CONFIG)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
    with pytest.raises(ValueError, match="other settings or data"):
        train(*call, tmp_path / "parts", replace(CONFIG, learning_rate=1e-3))


def test_training_leaves_the_global_generator_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    args = tiny_args(vocab_size=tokenizer.n_words, max_seq_len=64)
    config = replace(CONFIG, steps=1)
    train(args, tokenizer.model_path, documents(tokenizer), [], tmp_path, config)
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ValueError, match="no documents"):
        train(args, tokenizer.model_path, [], [], tmp_path)


def test_a_trained_tokenizer_is_one_that_llama_3_reads(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.model"
    train_tokenizer(SENTENCES * 3, 330, path)
    trained = Tokenizer(path)
    assert trained.n_words == 330 + 256
    text = SENTENCES[1] + " é\U0001f642\x00\n"
    assert trained.decode(trained.encode(text)) == text
    assert len(trained.encode(SENTENCES[1])) < 0.6 * len(SENTENCES[1])
    ranks = load_tiktoken_bpe(str(path))
    assert sorted(ranks.values()) == list(range(330))
    assert all(ranks[bytes([byte])] < 256 for byte in range(256))
    with pytest.raises(ValueError, match="n_ranks=255"):
        train_tokenizer(SENTENCES, 255, path)
    with pytest.raises(ValueError, match="use more text"):
        train_tokenizer(["ab"], 300, path)
