"""The trained model on one process and many, its loss and its gradients."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fixtures import run_ranks, tiny_args
from torch import nn

from llama import Transformer, distributed
from llama.checkpoint.convert import convert
from llama.checkpoint.opening import open_checkpoint
from llama.checkpoint.saving import save_model
from llama.model import TransformerBlock
from llama.training.config import TrainConfig
from llama.training.loss import token_losses
from llama.training.packing import Batch
from llama.training.trainable_model import TrainableModel

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))

VOCAB = 128
STEPS = 20
CONFIG = TrainConfig(dtype=torch.float32, tie_embeddings=True)
# Data parallel processes, ranks that share a model, how the former divide, batches of a step.
LAYOUTS = {
    2: [(2, 1, "ddp", 1), (2, 1, "ddp", 2), (2, 1, "fsdp", 1), (2, 1, "fsdp", 2), (1, 2, "ddp", 1)],
    4: [(2, 2, "ddp", 1), (2, 2, "fsdp", 2)],
}


def batch(step: int, rows: slice = slice(None)) -> Batch:
    """Eight rows of a rule to learn, in two documents each; some targets are not to be learned."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCAB, (8, 33), generator=generator)
    tokens[:, 1::2] = (tokens[:, :-1:2] * 3 + 1) % VOCAB
    targets = tokens[:, 1:].clone()
    targets[torch.rand(targets.shape, generator=generator) < 0.3] = -100
    positions = torch.cat((torch.arange(20), torch.arange(12))).expand(8, 32)
    return Batch(tokens[rows, :-1], targets[rows], positions[rows])


def trained(config: TrainConfig, batches: int, steps: int = STEPS) -> tuple[Any, Any]:
    """Loss and gradient norm of each step, and the weights after them."""
    args = tiny_args(dim=64, vocab_size=VOCAB)
    trainable = TrainableModel(args, None, config, torch.device("cpu"))
    rank, ranks = distributed.data_parallel_rank(), distributed.data_parallel_size()
    found = []
    for step in range(steps):
        rows = [slice(rank + ranks * i, None, ranks * batches) for i in range(batches)]
        count = int((batch(step).targets >= 0).sum())
        found.append(trainable.step([batch(step, part) for part in rows], 1e-2, count))
    return torch.tensor(found), trainable.whole_weights(torch.float32)


def trained_in_layouts(ranks: int, tied: bool) -> list[tuple[Any, Any]]:
    found = []
    for _, shared, divided, batches in LAYOUTS[ranks]:
        distributed.shutdown()
        distributed.initialize(shared)
        config = replace(
            CONFIG, model_parallel_size=shared, data_parallel=divided, tie_embeddings=tied
        )
        found.append(trained(config, batches))
    return found


@pytest.mark.parametrize(
    ("ranks", "tied"), [(2, True), pytest.param(4, False, marks=pytest.mark.slow)]
)
def test_any_number_of_processes_makes_the_same_losses(ranks: int, tied: bool) -> None:
    distributed.initialize()
    losses, weights = trained(replace(CONFIG, tie_embeddings=tied), 1)
    assert losses[-1, 0] < 0.97 * losses[0, 0]
    results = run_ranks(ranks, trained_in_layouts, ranks, tied)
    for i, layout in enumerate(LAYOUTS[ranks]):
        found, parts = results[0][i]
        torch.testing.assert_close(found[:, 0], losses[:, 0], rtol=1e-4, atol=0, msg=str(layout))
        torch.testing.assert_close(found[:, 1], losses[:, 1], rtol=5e-4, atol=0, msg=str(layout))
        if layout[1] == 1:
            for name, weight in weights.items():
                torch.testing.assert_close(parts[name], weight, rtol=0, atol=2e-3)
        others = [result[i][1] for result in results[1:]]
        assert all(bool(other) == (layout[1] == 2 and j == 0) for j, other in enumerate(others))


def test_accumulated_batches_make_the_step_of_one() -> None:
    distributed.initialize()
    whole, _ = trained(CONFIG, 1, 10)
    parts, _ = trained(CONFIG, 4, 10)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=0)


def test_blocks_that_are_computed_again_or_compiled_make_the_same_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    distributed.initialize()
    plain, _ = trained(CONFIG, 1, 5)
    again, _ = trained(replace(CONFIG, activation_checkpointing=True), 1, 5)
    assert torch.equal(again, plain)
    compiled = []

    def traced(block: nn.Module) -> None:  # inductor would take half a minute
        compiled.append(block)
        nn.Module.compile(block, backend="eager")

    monkeypatch.setattr(TransformerBlock, "compile", traced, raising=False)
    found, _ = trained(replace(CONFIG, compile=True), 1, 5)
    assert len(compiled) == 2
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=0)


def test_products_in_bfloat16_train_weights_in_float32() -> None:
    distributed.initialize()
    config = replace(CONFIG, dtype=torch.bfloat16)
    narrow, _ = trained(config, 1, 20)
    wide, _ = trained(CONFIG, 1, 20)
    torch.testing.assert_close(narrow[:, 0], wide[:, 0], rtol=1e-2, atol=0)
    args = tiny_args(dim=64, vocab_size=VOCAB)
    trainable = TrainableModel(args, None, config, torch.device("cpu"))
    before = trainable.model.norm.weight.clone()
    trainable.step([batch(0)], 1e-6, 179)
    moved = (trainable.model.norm.weight - before).abs()
    assert moved.max() > 0  # bfloat16 would have rounded that away
    assert moved.max() < 1e-5


def test_weight_decay_leaves_norms_alone() -> None:
    distributed.initialize()
    args = tiny_args(dim=64, vocab_size=VOCAB)
    for optimizer in ("adamw", "muon"):
        config = replace(CONFIG, weight_decay=0.5, optimizer=optimizer)
        trainable = TrainableModel(args, None, config, torch.device("cpu"))
        groups = [g for o in trainable.optimizers for g in o.param_groups]
        decayed = {p for g in groups if g["weight_decay"] for p in g["params"]}
        names = {name for name, p in trainable.model.named_parameters() if p in decayed}
        assert {name for name in names if "norm" in name} == set()
        assert len(names) == 2 * 7 + 1
        assert sum(len(g["params"]) for g in groups) == len(trainable.parameters)


def test_each_micro_batch_on_a_cpu_runs_on_the_threads_that_are_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, running = [], []

    class Threads:
        def __enter__(self) -> None:
            running.append(self)

        def __exit__(self, *error: object) -> None:
            entered.append(running.pop())

    distributed.initialize()
    monkeypatch.setattr(distributed, "adaptive_threads", Threads)
    trainable = TrainableModel(tiny_args(vocab_size=VOCAB), None, CONFIG, torch.device("cpu"))
    gradient_threads = []
    weight = trainable.model.norm.weight
    weight.register_hook(lambda gradient: gradient_threads.extend(running))
    trainable.step([batch(0), batch(1)], 1e-3, 300)
    assert len(entered) == 2
    assert entered == gradient_threads  # also of the backward pass
    assert not running


@pytest.mark.parametrize("rows", [1, 256, 600])
def test_the_chunked_loss_is_cross_entropy(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(rows, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(50, (rows,), generator=generator)
    targets[::3] = -100
    total, each = token_losses(h, weight, targets)
    (total * 0.5).backward()
    found = h.grad, weight.grad
    h.grad = weight.grad = None
    expected = F.cross_entropy((h @ weight.T).double(), targets, reduction="none")
    (expected.sum() * 0.5).backward()
    torch.testing.assert_close(each.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert total.item() == pytest.approx(expected.sum().item(), rel=1e-5)
    for ours, theirs in zip(found, (h.grad, weight.grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_chunked_loss_leaves_frozen_weights_and_no_grad_alone() -> None:
    h, weight = torch.randn(5, 8, requires_grad=True), torch.randn(12, 8)
    targets = torch.tensor([1, 2, -100, 3, 11])
    total, _ = token_losses(h, weight, targets)
    total.backward()
    assert h.grad is not None
    with torch.no_grad():
        again, _ = token_losses(h, weight, targets)
    assert not again.requires_grad
    assert again.item() == pytest.approx(total.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["llama2", "llama3", "llama3.1"])
def test_gradients_of_packed_documents_match_transformers(name: str, tmp_path: Path) -> None:
    """Every parameter's gradient, through the loss that training has, of documents side by side."""
    from make_reference import SHAPES, hugging_face_model, hugging_face_weights, random_weights

    args, hidden = SHAPES[name]
    args = {**args, "n_layers": 2}
    weights = random_weights(args, hidden, torch.Generator().manual_seed(1))
    params = tiny_args(**{"n_kv_heads": None, **args})
    model = Transformer(params)
    model.load_state_dict({key: weight.float() for key, weight in weights.items()})
    (tmp_path / "tokenizer.model").write_text("none")
    save_model(model, tmp_path / "base", tmp_path / "tokenizer.model", torch.float32)
    base = open_checkpoint(tmp_path / "base")
    trainable = TrainableModel(
        base.args, base, replace(CONFIG, tie_embeddings=None), torch.device("cpu")
    )

    lengths = (7, 1, 13, 10)
    generator = torch.Generator().manual_seed(2)
    documents = [torch.randint(args["vocab_size"], (n + 1,), generator=generator) for n in lengths]
    tokens = torch.cat([d[:-1] for d in documents])[None]
    targets = torch.cat([d[1:] for d in documents])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    total, each, _ = trainable.losses(Batch(tokens, targets, positions))
    total.backward()

    theirs = hugging_face_model(args, hidden, weights).float()
    alone = [
        F.cross_entropy(theirs(d[None, :-1]).logits[0].float(), d[1:], reduction="none")
        for d in documents
    ]
    expected = torch.cat(alone)
    expected.sum().backward()
    torch.testing.assert_close(each[: len(expected)], expected.detach(), rtol=1e-4, atol=1e-5)
    gradients = {key: parameter.grad for key, parameter in trainable.model.named_parameters()}
    ours = hugging_face_weights(gradients, params.head_dim)
    for key, parameter in theirs.named_parameters():
        error = (ours[key] - parameter.grad).norm() / parameter.grad.norm()
        assert error < 1e-4, key


def test_packed_weights_are_trained_with_an_adapter_only(tmp_path: Path) -> None:
    convert(
        str(Path(__file__).parents[2] / "params" / "tiny"), str(tmp_path / "int4"), quantize="int4"
    )
    base = open_checkpoint(tmp_path / "int4")
    with pytest.raises(ValueError, match=r"int4 holds int4 weights, .* an adapter .*--lora"):
        TrainableModel(base.args, base, CONFIG, torch.device("cpu"))
