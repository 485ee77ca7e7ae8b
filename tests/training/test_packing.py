import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures import tiny_args

from llama import Tokenizer, Transformer
from llama.training import packing
from llama.training.documents import Document, text_document
from llama.training.packing import IGNORED, Batch, PackedRows, Row, Segment
from llama.training.tokenized import Documents, tokenize


def document(size: int, *learned: slice, first: int = 0) -> Document:
    learn = torch.zeros(size, dtype=torch.bool)
    for part in learned or (slice(1, None),):
        learn[part] = True
    return Document(torch.arange(first, first + size, dtype=torch.int32), learn)


def of_sizes(sizes: list[int]) -> list[Document]:
    return [document(size) for size in sizes]


def random_sizes(count: int, longest: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(0, longest) for _ in range(count)]


def inputs(row: Row) -> int:
    return sum(segment.stop - segment.start - 1 for segment in row)


def padding(rows: list[Row], seq_len: int) -> float:
    return 1 - sum(map(inputs, rows)) / (len(rows) * seq_len)


# Which segments there are


@pytest.mark.parametrize(
    ("size", "segments"),
    [
        (0, []),
        (1, []),
        (2, [(0, 2)]),
        (11, [(0, 11)]),
        (12, [(0, 11), (10, 12)]),
        (21, [(0, 11), (10, 21)]),
        (25, [(0, 11), (10, 21), (20, 25)]),
    ],
)
def test_only_what_is_longer_than_a_row_is_cut(size: int, segments: list) -> None:
    packed = PackedRows(of_sizes([size]), seq_len=10, seed=0)
    found = [segment for row in packed.epoch(0) for segment in row]
    assert sorted(found) == [(0, *segment) for segment in segments]


@pytest.mark.parametrize(
    ("learned", "starts"),
    [
        ([slice(0, 1)], []),
        ([slice(0, 0)], []),
        ([slice(1, 2)], [0]),
        ([slice(10, 11)], [0]),
        ([slice(11, 12)], [10]),
        ([slice(20, 22)], [10, 20]),
        ([slice(5, 6), slice(24, 25)], [0, 20]),
        ([slice(1, 25)], [0, 10, 20]),
    ],
)
@pytest.mark.parametrize("stored", [list, Documents.of])
def test_what_has_nothing_to_learn_takes_no_room(learned: list, starts: list, stored: type) -> None:
    nothing = [document(4, slice(0, 1)), document(11, slice(0, 0))]
    documents = stored([document(3), document(25, *learned), document(4), *nothing])
    packed = PackedRows(documents, seq_len=10, seed=0)
    segments = sorted(segment for row in packed.epoch(0) for segment in row)
    expected = [(1, start, min(start + 11, 25)) for start in starts]
    assert segments == [(0, 0, 3), *expected, (2, 0, 4)]


# Rows


@pytest.mark.parametrize("stored", [list, Documents.of])
def test_an_epoch_has_everything_once_in_rows_that_fit(stored: type) -> None:
    sizes = random_sizes(12_000, 150)
    packed = PackedRows(stored(of_sizes(sizes)), seq_len=64, seed=3)
    rows = list(packed.epoch(0))
    assert len(rows) == packed.rows_in_epoch(0)
    assert all(0 < inputs(row) <= 64 for row in rows)
    segments = sorted(segment for row in rows for segment in row)
    expected = [
        (i, start, min(start + 65, n)) for i, n in enumerate(sizes) for start in range(0, n - 1, 64)
    ]
    assert segments == expected
    assert packed.documents.lengths.tolist() == sizes


@pytest.mark.parametrize(
    ("smallest", "largest", "seq_len", "most"),
    [
        (2, 1000, 1024, 0.01),
        (20, 120, 256, 0.004),
        (100, 350, 1024, 0.004),
        (100, 350, 512, 0.008),
        (30, 60, 512, 0.01),
        (2, 20_000, 2048, 0.001),
    ],
)
def test_rows_are_hardly_padded(smallest: int, largest: int, seq_len: int, most: float) -> None:
    rng = random.Random(0)
    sizes = [rng.randint(smallest, largest) for _ in range(9000)]
    rows = list(PackedRows(of_sizes(sizes), seq_len, seed=0).epoch(0))
    assert padding(rows, seq_len) < most


def test_rows_are_in_no_order() -> None:
    packed = PackedRows(of_sizes(random_sizes(9000, 100)), seq_len=128, seed=0)
    rows = list(packed.epoch(0))
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    for measure in (len, lambda row: max(p.stop - p.start for p in row), lambda row: row[0][0]):
        means = [np.mean([measure(row) for row in half]) for half in (first, second)]
        assert means[0] == pytest.approx(means[1], rel=0.04)


def test_rows_depend_on_seed_and_epoch_only() -> None:
    documents = of_sizes(random_sizes(300, 60))
    packed = PackedRows(documents, 64, seed=5)
    epochs = [list(packed.epoch(number)) for number in (0, 1, 2, 0)]
    assert epochs[0] == epochs[3]
    again = PackedRows(Documents.of(documents), 64, seed=5)
    assert [list(again.epoch(number)) for number in (1, 0)] == [epochs[1], epochs[0]]
    other = list(PackedRows(documents, 64, seed=6).epoch(0))
    sets = [{frozenset(row) for row in rows} for rows in (*epochs[:3], other)]
    for i in range(4):  # other documents stand together, not only the rows in another order
        for j in range(i):
            assert len(sets[i] & sets[j]) < 0.5 * len(sets[i])


def test_the_rows_of_always() -> None:
    """Also another version of numpy, or of this code, has to go on with the same rows."""
    packed = PackedRows(of_sizes([4, 9, 3, 7, 5, 6, 2, 8]), seq_len=12, seed=1)
    found = [[segment.document for segment in row] for row in packed.epoch(0)]
    assert found == [[7, 5], [1, 4], [3, 0, 2, 6]]


def test_rows_go_on_epoch_after_epoch_from_anywhere() -> None:
    documents = of_sizes(random_sizes(200, 50))
    packed = PackedRows(documents, 64, seed=2)
    whole = [row for number in range(4) for row in packed.epoch(number)]
    assert len(whole) == sum(packed.rows_in_epoch(number) for number in range(4))
    first = packed.rows_in_epoch(0)
    for start in (0, 1, first - 1, first, first + 1, len(whole) - 3):
        fresh = PackedRows(documents, 64, seed=2)
        found = list(islice(fresh.rows(start), len(whole) - start))
        assert found == whole[start:]


def test_a_pass_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    best_fit = packing._best_fit

    def noted(*args: object) -> object:
        calls.append(1)
        return best_fit(*args)

    monkeypatch.setattr(packing, "_best_fit", noted)
    packed = PackedRows(of_sizes(random_sizes(100, 50)), 64, seed=2)
    count = packed.rows_in_epoch(0)
    list(islice(packed.rows(), count))
    assert len(calls) == 1
    list(islice(packed.rows(count), 1))
    assert len(calls) == 2
    assert packed.rows_in_epoch(0) == count
    assert len(calls) == 2


@pytest.mark.parametrize("documents", [[], of_sizes([0, 1, 1]), Documents([])])
def test_nothing_to_learn(documents: object) -> None:
    packed = PackedRows(documents, 8, seed=0)
    assert packed.rows_in_epoch(0) == 0
    assert list(packed.epoch(0)) == []
    with pytest.raises(ValueError, match="the documents have no tokens to train on"):
        next(packed.rows())


def test_a_row_has_at_least_a_token() -> None:
    with pytest.raises(ValueError, match="seq_len=0"):
        PackedRows([], 0, seed=0)


# Batches


def collate(documents: Sequence[Document], rows: list[Row], seq_len: int) -> Batch:
    return PackedRows(documents, seq_len, seed=0).batch(rows)


@pytest.mark.parametrize("stored", [list, Documents.of])
def test_a_batch_as_it_is_drawn(stored: type) -> None:
    documents = stored([document(4, first=10), document(3, slice(2, 3), first=20)])
    rows = [[Segment(0, 0, 4), Segment(1, 0, 3)], [Segment(0, 1, 3)], []]
    batch = collate(documents, rows, seq_len=8)
    x = IGNORED
    assert batch.tokens.tolist() == [[10, 11, 12, 20, 21, 0, 0, 0], [11] + [0] * 7, [0] * 8]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0, 0, 0], [0] * 8, [0] * 8]
    assert batch.targets.tolist() == [[11, 12, 13, x, 22, x, x, x], [12] + [x] * 7, [x] * 8]
    assert {part.dtype for part in batch} == {torch.int64}


def test_no_rows_are_a_batch_of_none() -> None:
    assert [part.shape for part in collate([], [], 8)] == [(0, 8)] * 3


def losses(model: Transformer, tokens: torch.Tensor, targets: torch.Tensor, **at: object) -> object:
    logits = model(tokens, **at)
    return F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(targets)


def test_packed_documents_have_the_losses_of_the_same_alone() -> None:
    model = Transformer(tiny_args(vocab_size=97))
    for weight in model.parameters():
        weight.data *= 4
    rng = random.Random(1)
    sizes = [2, 3, 4, 40, 33, *(rng.randint(2, 30) for _ in range(20))]
    documents = []
    for size in sizes:
        tokens = torch.tensor([rng.randrange(97) for _ in range(size)], dtype=torch.int32)
        documents.append(Document(tokens, torch.tensor([rng.random() < 0.8 for _ in range(size)])))
    packed = PackedRows(documents, seq_len=32, seed=4)
    rows = list(packed.epoch(0))
    assert max(map(len, rows)) > 2
    assert min(map(inputs, rows)) < 32
    batch = collate(documents, rows, 32)
    with torch.no_grad():
        together = losses(model, batch.tokens, batch.targets, positions=batch.positions)
        learned = 0
        for row, segments in enumerate(rows):
            at = 0
            for index, start, stop in segments:
                tokens = documents[index].tokens[start:stop].long().unsqueeze(0)
                loss_mask = documents[index].loss_mask[start:stop].unsqueeze(0)
                alone = losses(model, tokens[:, :-1], tokens[:, 1:]) * loss_mask[:, 1:]
                end = at + stop - start - 1
                torch.testing.assert_close(
                    together[row, at:end], alone.squeeze(0), rtol=1e-5, atol=1e-5
                )
                learned += int(loss_mask[:, 1:].sum())
                at = end
            assert (together[row, at:] == 0).all()
    assert int((batch.targets != IGNORED).sum()) == learned
    assert learned == sum(int(d.loss_mask[1:].sum()) for d in documents)


def test_rows_of_tokenized_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "the hello world " * 50
    path.write_text(text + "\n<|endoftext|>\nhello")
    documents = tokenize(path, tokenizer)
    rows = list(PackedRows(documents, 64, seed=0).epoch(0))
    batch = collate(documents, rows, 64)
    expected = collate([text_document(tokenizer, t) for t in (text.rstrip(), "hello")], rows, 64)
    assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))
    assert int((batch.targets != IGNORED).sum()) == int(documents.num_loss_tokens.sum())
