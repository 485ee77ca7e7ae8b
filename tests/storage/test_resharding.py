"""Checkpoints of M shards on N ranks, for M and N that need not be multiples of each other."""

from pathlib import Path

import pytest
import torch
from fixtures import run_ranks, write_shards

from llama import distributed
from llama.args import ModelArgs, weight_shapes
from llama.checkpoint.loading import load
from llama.model import Transformer
from llama.storage.sharding import share

CPU = torch.device("cpu")
LLAMA2 = "2, cut as in Llama 2"
SHAPES = {
    "8 heads over 4": dict(dim=64, n_layers=2, n_heads=8, n_kv_heads=4, multiple_of=64),
    "8 heads over 1": dict(dim=64, n_layers=2, n_heads=8, n_kv_heads=1, multiple_of=64),
    "24 heads over 12": dict(dim=96, n_layers=2, n_heads=24, n_kv_heads=12, multiple_of=96),
    "8 heads of 16": dict(dim=64, n_layers=1, n_heads=8, n_kv_heads=4, multiple_of=64, head_dim=16),
}
SHARDS = {
    "8 heads over 4": (1, 2, 4, 8, LLAMA2),
    "8 heads over 1": (1, 2, 8),
    "24 heads over 12": (1, 2, 3, 4, 12, LLAMA2),
    "8 heads of 16": (1, 4, 8),
}
RANKS = {
    "8 heads over 4": (1, 2, 4, 8),
    "8 heads over 1": (1, 4),
    "24 heads over 12": (1, 3, 4),
    "8 heads of 16": (1, 2, 8),
}
ROUNDS = sorted({ranks for allowed in RANKS.values() for ranks in allowed})


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """SHAPE/SHARDS for all of them, and SHAPE.pt with whole weights, tokens and logits."""
    root = tmp_path_factory.mktemp("shards")
    generator = torch.Generator().manual_seed(0)
    for shape, numbers in SHAPES.items():
        params = {**numbers, "vocab_size": 96, "norm_eps": 1e-5, "rope_theta": 500000.0}
        model = Transformer(ModelArgs(**params))
        for weight in model.parameters():
            weight.data += 0.3 * torch.randn(weight.shape, generator=generator)
        tokens = torch.randint(96, (2, 11), generator=generator)
        with torch.no_grad():
            torch.save((tokens, model(tokens)), root / f"{shape}.pt")
        for shards in SHARDS[shape]:
            count = 2 if shards == LLAMA2 else shards
            weights = model.state_dict()
            write_shards(root / shape / str(shards), weights, params, count, shards == LLAMA2)
    return root


def logits_of_all(root: Path) -> dict[str, torch.Tensor | str]:
    """Largest relative difference from the one-rank model, for every checkpoint that fits."""
    distributed.initialize()
    ranks = distributed.model_parallel_size()
    found: dict[str, torch.Tensor | str] = {}
    for shape, allowed in RANKS.items():
        if ranks not in allowed:
            continue
        tokens, expected = torch.load(root / f"{shape}.pt")
        for shards in SHARDS[shape]:
            lengths = {"max_batch_size": 2, "max_seq_len": 16}
            folder = root / shape / str(shards)
            model = load(folder, device=CPU, dtype=torch.float32, **lengths)
            local = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
            assert local == weight_shapes(model.params, ranks)
            with torch.no_grad():
                whole_pass = model(tokens)
                model(tokens[:, :-1], 0)
                last = model(tokens[:, -1:], tokens.shape[1] - 1)
            error = (whole_pass - expected).norm() / expected.norm()
            step = (last[:, 0] - expected[:, -1]).norm() / expected[:, -1].norm()
            found[f"{shape} in {shards}"] = torch.stack((error, step))
    return found


@pytest.mark.parametrize("ranks", ROUNDS)
def test_every_number_of_shards_on_every_number_of_ranks(folders: Path, ranks: int) -> None:
    found = [logits_of_all(folders)] if ranks == 1 else run_ranks(ranks, logits_of_all, folders)
    pairs = {
        f"{shape} in {shards}"
        for shape, allowed in RANKS.items()
        for shards in SHARDS[shape]
        if ranks in allowed
    }
    for of_rank in found:
        assert set(of_rank) == pairs
        assert all(errors.max() < 1e-5 for errors in of_rank.values()), of_rank


def test_a_rank_reads_its_part_and_no_more() -> None:
    assert share((8, 6), (8, 2), 1, 3) == (slice(0, 8), slice(2, 4))
    assert share((8, 6), (2, 6), 3, 4) == (slice(6, 8), slice(0, 6))
    assert share((8,), (8,), 3, 4) == (slice(0, 8),)
    # Two heads of 4 rows on four ranks: 0 and 1 share the first, 2 and 3 the second.
    heads = [share((8, 6), (4, 6), rank, 4)[0] for rank in range(4)]
    assert heads == [slice(0, 4), slice(0, 4), slice(4, 8), slice(4, 8)]
