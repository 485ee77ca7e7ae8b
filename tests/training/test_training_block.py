"""Blocks that train on native kernels, beside plain blocks under autocast and in float32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fixtures import difference, needs_compiler, run_ranks, tiny_args, use_kernels
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llama import Transformer, distributed
from llama.kernels import training_ops as kernels
from llama.model import DocumentMask, ModelArgs, TransformerBlock
from llama.training import block as block_module
from llama.training.block import TrainingBlock, use_training_blocks

# Beside plain blocks under the same autocast, which round to bfloat16 elsewhere: the bound for the
# hidden state and for the gradient of each parameter, relative to its norm.
NEAR = 0.02
SHAPES = {
    "grouped": dict(dim=128, n_heads=4, n_kv_heads=2),
    "heads of 16": dict(dim=64, n_heads=4, n_kv_heads=4),
    "heads of 128": dict(dim=128, n_heads=3, n_kv_heads=1, head_dim=128),
}
POSITIONS = torch.stack(
    [
        torch.cat([torch.arange(length) for length in row])
        for row in ([70, 1, 5, 24], [100], [9] * 11 + [1])
    ]
)
TOKENS = torch.randint(64, (3, 100), generator=torch.Generator().manual_seed(3))


def model_of(shape: str = "grouped", **overrides: object) -> Transformer:
    """Large weights, so that attention is no plain mean and norms' weights matter."""
    torch.manual_seed(0)
    model = Transformer(tiny_args(**{**SHAPES[shape], "max_seq_len": 128, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
            else:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    return model


def autocast(dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    return torch.autocast("cpu", dtype)


def trained(
    model: Transformer, positions: Tensor | None = POSITIONS, context: Callable = autocast
) -> dict[str, Tensor]:
    """The hidden state and the gradients of a pass."""
    model.zero_grad()
    with context():
        h = model.hidden(TOKENS, positions=positions)
        loss = F.cross_entropy(model.output(model.norm(h)).float().flatten(0, 1), TOKENS.flatten())
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"h": h.detach(), **gradients}


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Which kernels are called, in order."""
    calls: list[str] = []

    def spy(name: str, function: Callable[..., Tensor], *args: object) -> Tensor:
        calls.append(name)
        return function(*args)

    with monkeypatch.context() as patch:
        for name in ("add_rms_norm", "packed_attention", "silu_mul"):
            patch.setattr(block_module, name, partial(spy, name, getattr(kernels, name)))
        yield calls


ONE_BLOCK = ["add_rms_norm", "packed_attention", "add_rms_norm", "silu_mul"]


@needs_compiler
@pytest.mark.parametrize("positions", [POSITIONS, None], ids=["packed", "plain"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_computes_what_a_block_does(
    shape: str, positions: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(shape)
    plain = trained(model, positions)
    exact = trained(model, positions, nullcontext)
    use_training_blocks(model)
    with counted(monkeypatch) as calls:
        native = trained(model, positions)
    assert calls == ONE_BLOCK * 2
    assert native.keys() == plain.keys()
    for name, found in native.items():
        assert found.dtype == torch.float32
        assert not torch.equal(found, exact[name])
        assert difference(found, plain[name]) < NEAR, name
        assert difference(found, exact[name]) < NEAR, name
    errors = [sum(difference(run[name], exact[name]) for name in exact) for run in (native, plain)]
    assert errors[0] < 1.05 * errors[1]  # as near to the truth as plain autocast


@needs_compiler
@pytest.mark.parametrize("positions", [POSITIONS, None], ids=["packed", "plain"])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_too(
    shape: str, positions: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(shape)
    plain = trained(model, positions, nullcontext)
    use_training_blocks(model)
    with counted(monkeypatch) as calls:
        native = trained(model, positions, nullcontext)
    assert calls == ONE_BLOCK * 2
    for name, found in native.items():
        assert found.dtype == torch.float32
        assert difference(found, plain[name]) < 1e-5, name


@needs_compiler
def test_it_keeps_parameters_names_and_order() -> None:
    model, plain = model_of(), model_of()
    before = dict(model.named_parameters())
    use_training_blocks(model)
    layers = list(model.layers)
    assert all(type(layer) is TrainingBlock for layer in layers)
    use_training_blocks(model)
    assert all(a is b for a, b in zip(layers, model.layers, strict=True))
    assert [layer.layer_id for layer in model.layers] == [0, 1]
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is parameter for name, parameter in before.items())
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict({name: p * 2 for name, p in plain.state_dict().items()})
    plain.load_state_dict({name: p * 2 for name, p in plain.state_dict().items()})
    found, expected = (trained(m, context=nullcontext)["h"] for m in (model, plain))
    assert difference(found, expected) < 1e-5


@needs_compiler
@pytest.mark.parametrize("way", ["float16", "cache", "mask", "heads", "compiling"])
def test_elsewhere_it_is_a_plain_block(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = {"dim": 96} if way == "heads" else {}  # heads of 24
    model = model_of(**overrides)
    plain = TransformerBlock.forward
    context = partial(autocast, torch.float16) if way == "float16" else autocast
    use_training_blocks(model)
    x = torch.randn(3, 100, model.params.dim)
    turns = torch.polar(torch.ones(100, 16), torch.rand(100, 16))
    args: tuple = (0, turns, None)
    if way == "cache":
        with torch.no_grad():
            cache = model.bfloat16().new_cache(3, 100)
            model(TOKENS, 0, cache=cache)
        args, x = (0, turns, None, cache.layer(0)), x.bfloat16()
    if way == "mask":
        args = (0, turns, torch.rand(100, 100) < 0.5)
    if way == "heads":
        args = (0, turns[:, :12], None)
    if way == "compiling":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with counted(monkeypatch) as calls, context(), torch.no_grad():
        found, expected = model.layers[0](x, *args), plain(model.layers[0], x, *args)
    assert torch.equal(found, expected)
    assert calls == []


@needs_compiler
def test_native_kernels_need_no_dense_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    use_training_blocks(model)
    monkeypatch.setattr(DocumentMask, "dense", lambda self: pytest.fail("made"))
    trained(model)


def test_the_dense_mask_is_made_once_for_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    made, dense = [], DocumentMask.dense
    monkeypatch.setattr(DocumentMask, "dense", lambda self: made.append(dense(self)) or made[-1])
    trained(model_of())
    assert len(made) == 2
    assert made[0] is made[1]


def test_without_kernels_it_is_a_plain_block(monkeypatch: pytest.MonkeyPatch) -> None:
    use_kernels("off", monkeypatch)
    model = model_of()
    plain = trained(model)
    use_training_blocks(model)
    for name, found in trained(model).items():
        assert torch.equal(found, plain[name])


@needs_compiler
def test_a_model_in_bfloat16_trains_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of().bfloat16()
    plain = trained(model)
    use_training_blocks(model)
    with counted(monkeypatch) as calls:
        native = trained(model)
    assert calls == ONE_BLOCK * 2
    for name, found in native.items():
        assert found.dtype == torch.bfloat16
        assert difference(found, plain[name]) < 0.05, name


@needs_compiler
def test_generation_goes_on_after_training() -> None:
    model = model_of()
    with torch.no_grad():
        expected = model(TOKENS)
        use_training_blocks(model)
        cache = model.new_cache(3, 100)
        found = [model(TOKENS[:, i : i + 10], i, cache=cache) for i in range(0, 100, 10)]
    assert difference(torch.cat(found, 1), expected) < 1e-5


class Adapted(nn.Module):
    """A frozen layer with two small matrices that learn, as in LoRA."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        out, inputs = layer.weight.shape
        self.a = nn.Parameter(torch.randn(4, inputs) / 8)
        self.b = nn.Parameter(torch.randn(out, 4) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + F.linear(F.linear(x, self.a), self.b)


@needs_compiler
@pytest.mark.parametrize("names", [["wq"], ["wv"], ["wk", "wo"], ["w1"], ["w2", "w3"]])
def test_layers_may_be_wrapped_and_the_rest_frozen(names: list[str]) -> None:
    model = model_of().requires_grad_(False)
    for layer in model.layers:
        for half in (layer.attention, layer.feed_forward):
            for name in names:
                if hasattr(half, name):
                    setattr(half, name, Adapted(getattr(half, name)))
    plain = trained(model)
    use_training_blocks(model)
    native = trained(model)
    assert native.keys() == plain.keys()
    assert len(native) == 1 + 4 * len(names)
    for name, found in native.items():
        assert difference(found, plain[name]) < NEAR, name


@needs_compiler
def test_activations_may_be_recomputed() -> None:
    model = model_of()
    use_training_blocks(model)
    kept = trained(model)
    for layer in model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    for name, found in trained(model).items():
        assert torch.equal(found, kept[name])


@needs_compiler
def test_a_document_trains_as_it_does_alone() -> None:
    model = model_of()
    use_training_blocks(model)
    with autocast(), torch.no_grad():
        packed = model.hidden(TOKENS, positions=POSITIONS)[0, 76:]
        alone = model.hidden(TOKENS[:1, 76:])[0]
    assert difference(packed, alone) < 1e-2  # products of other sizes round in another order


def gradients_on_a_rank(ranks: int) -> dict[str, Tensor]:
    """Of the first layer's norms, which every rank has whole, and the hidden state."""
    distributed.initialize(ranks)
    args = ModelArgs(dim=128, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=64, multiple_of=32)
    model = Transformer(args)
    rank = distributed.model_parallel_rank()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                continue
            cut = 1 if name.endswith(("wo.weight", "w2.weight")) else 0
            shape = list(parameter.shape)
            shape[cut] *= ranks
            whole = torch.randn(shape, generator=generator) * 0.1
            parameter.copy_(whole.chunk(ranks, cut)[rank])
    use_training_blocks(model)
    found = trained(model)
    norms = {name: g for name, g in found.items() if "_norm" in name}
    return {"h": found["h"], **norms}


@needs_compiler
def test_ranks_train_what_one_does() -> None:
    one = gradients_on_a_rank(1)
    for found in run_ranks(2, gradients_on_a_rank, 2):
        assert found.keys() == one.keys()
        for name in one:
            assert difference(found[name], one[name]) < NEAR, name
