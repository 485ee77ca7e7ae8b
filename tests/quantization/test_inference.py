"""Blocks whose few rows go through native kernels, beside plain blocks in float64."""

import copy
import functools
import pickle
from itertools import pairwise

import pytest
import torch
from fixtures import (
    KERNEL_TARGETS,
    difference,
    kernel_targets,
    needs_compiler,
    run_ranks,
    use_kernels,
)

from llama import ModelArgs, Transformer, distributed, kernels
from llama.cache import Int8KVCache, KVCache, RaggedKVCache
from llama.quantization import linear_layers
from llama.quantization.inference_block import InferenceBlock
from llama.quantization.linear_layers import InferenceLinear

# heads, KV heads, size of a head: all ways that attention has of taking heads together
HEADS = [
    (8, 8, 32),
    (8, 2, 32),
    (3, 1, 64),
    (4, 1, 64),
    (5, 1, 64),
    (6, 3, 64),
    (3, 1, 128),
    (4, 2, 24),
]
LENGTH = 600  # more than two chunks of positions


def model_of(heads: int, kv_heads: int, head_dim: int, layers: int = 2) -> Transformer:
    torch.manual_seed(0)
    args = ModelArgs(
        dim=96,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=64,
        multiple_of=32,
        max_batch_size=3,
        max_seq_len=LENGTH,
    )
    model = Transformer(args).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)  # so that attention is no plain mean
            else:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    return model


def use_format(model: Transformer, name: str) -> None:
    """Of a bfloat16 model; "float32" widens it first."""
    if name == "float32":
        model.float()
    linear_layers.use_format(model, None if name == "float32" else name)


def exactly(model: Transformer) -> Transformer:
    """A plain model in float32 with the numbers that this one's weights stand for."""
    plain = Transformer(model.params)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            module = model.get_submodule(name.rpartition(".")[0])
            weight = module.matrix if isinstance(module, InferenceLinear) else module.weight
            if isinstance(weight, kernels.Packed):
                weight = kernels.unpack(weight, torch.float32)
            parameter.copy_(weight)
    return plain


def few_rows(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of decoding at common positions, of a few tokens at a time, and of ragged rows."""
    with torch.no_grad():
        cache = model.new_cache(3, LENGTH)
        ends = [*range(0, 45, 5), *range(520, 585, 5)]  # most of the cache is filled at once
        parts = [model(tokens[:, i:end], i, cache=cache) for i, end in pairwise(ends)][-3:]
        parts += [model(tokens[:, i : i + 1], i, cache=cache) for i in range(580, 584)]
        for starts in ([584, 300, 2], [0, 255, 256]):
            some = tokens[:, 584:589] if starts[0] else tokens[:, 590:591]
            parts.append(model(some, torch.tensor(starts), cache=cache))
    return torch.cat([part.flatten(0, 1) for part in parts])


def many_rows(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of a prompt, of a part that follows it, and of parts at different positions."""
    with torch.no_grad():
        cache = model.new_cache(3, LENGTH)
        parts = [
            model(tokens[:, :300], 0, cache=cache),
            model(tokens[:, 300:341], 300, cache=cache),
        ]
        starts = torch.tensor([341, 128, 2])
        parts.append(model(tokens[:, 341:360], starts, cache=cache))
    return torch.cat([part.flatten(0, 1) for part in parts])


def some_tokens() -> torch.Tensor:
    return torch.randint(0, 64, (3, LENGTH), generator=torch.Generator().manual_seed(1))


@needs_compiler
@pytest.mark.parametrize("rows", [few_rows, many_rows])
@pytest.mark.parametrize(
    ("quantize", "most"), [("float32", 1e-5), ("bfloat16", 0.03), ("int8", 0.06), ("int4", 0.06)]
)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_a_block_computes_what_a_plain_one_does(heads, quantize: str, most: float, rows) -> None:
    model = model_of(*heads)
    use_format(model, quantize)
    expected = rows(exactly(model), some_tokens())
    assert difference(rows(model, some_tokens()), expected) < most


@pytest.mark.parametrize("rows", [few_rows, many_rows])
@pytest.mark.parametrize(
    ("quantize", "most"), [("float32", 1e-5), ("bfloat16", 0.06), ("int4", 0.06)]
)
@pytest.mark.parametrize("heads", [(4, 1, 64), (3, 1, 128), (8, 2, 32)], ids=str)
@pytest.mark.parametrize("target", ["off", *kernel_targets("x86-64-v3")])
def test_lesser_processors_compute_the_same(
    target, heads, quantize, most, rows, monkeypatch
) -> None:
    model = model_of(*heads)
    use_format(model, quantize)
    native = rows(model, some_tokens())
    use_kernels(target, monkeypatch)
    assert difference(rows(model, some_tokens()), native) < most


@pytest.mark.parametrize("rows", [few_rows, many_rows])
@pytest.mark.parametrize(
    ("target", "heads"),
    [
        *(("native", heads) for heads in HEADS),
        ("off", (3, 1, 128)),
        *(pytest.param(each, (3, 1, 128), marks=pytest.mark.slow) for each in KERNEL_TARGETS),
    ],
    ids=str,
)
def test_a_cache_in_int8_is_near_one_that_is_not(target, heads, rows, monkeypatch) -> None:
    if target != "native":
        use_kernels(target, monkeypatch)
    model = model_of(*heads)
    plain = exactly(model)
    expected = rows(plain, some_tokens())
    plain.cache_type = model.cache_type = Int8KVCache
    rounded = difference(rows(plain, some_tokens()), expected)
    assert 1e-3 < rounded < 0.03
    for quantize in ("bfloat16", "float32"):
        use_format(model, quantize)
        assert difference(rows(model, some_tokens()), expected) < 0.04


@needs_compiler
@pytest.mark.parametrize("cache_type", [KVCache, Int8KVCache])
@pytest.mark.parametrize("rows", [few_rows, many_rows])
def test_what_is_not_finite_stays_in_its_row(rows, cache_type) -> None:
    model = model_of(4, 1, 64)
    model.cache_type = cache_type
    tokens = some_tokens() % 63
    tokens[1, 250] = 63
    with torch.no_grad():
        model.tok_embeddings.weight[63] = float("nan")
    use_format(model, "bfloat16")
    with torch.no_grad():
        cache = model.new_cache(3, LENGTH)
        step = 5 if rows is few_rows else 100
        found = torch.cat(
            [model(tokens[:, i : i + step], i, cache=cache) for i in range(0, 400, step)], 1
        )
    assert found[[0, 2]].isfinite().all()
    assert found[1, :200].isfinite().all()
    assert not found[1, 250:].isfinite().any()


@needs_compiler
def test_it_is_as_near_to_the_truth_as_plain_bfloat16() -> None:
    plain = model_of(4, 2, 64)
    expected = few_rows(exactly(plain), some_tokens())
    found = few_rows(plain, some_tokens())
    use_format(plain, "bfloat16")
    assert all(isinstance(layer, InferenceBlock) for layer in plain.layers)
    native = few_rows(plain, some_tokens())
    assert not torch.equal(native, found)
    assert difference(native, expected) < 1.1 * difference(found, expected)


@needs_compiler
@pytest.mark.parametrize("cache_type", [KVCache, Int8KVCache])
@pytest.mark.parametrize("quantize", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_row_depends_neither_on_others_nor_on_threads(
    quantize: str, threads: int, cache_type: type[KVCache]
) -> None:
    model = model_of(4, 1, 64)
    model.cache_type = cache_type
    use_format(model, quantize)
    tokens, starts = some_tokens(), torch.tensor([584, 300, 2])
    before = torch.get_num_threads()
    with torch.no_grad():
        cache = model.new_cache(3, LENGTH)
        model(tokens[:, :584], 0, cache=cache)
        alone = [
            model(tokens[i : i + 1, :1], starts[i : i + 1], cache=cache.view(i, 1, LENGTH))[0]
            for i in range(3)
        ]
        torch.set_num_threads(threads)
        try:
            together = model(tokens[:, :1], starts, cache=cache)
        finally:
            torch.set_num_threads(before)
    assert torch.equal(together, torch.stack(alone))


@needs_compiler
@pytest.mark.parametrize("quantize", ["float32", "bfloat16", "int4"])
def test_a_row_does_not_depend_on_the_number_of_ragged_rows(quantize: str) -> None:
    model, tokens = model_of(8, 2, 32), some_tokens()[0]
    use_format(model, quantize)
    assert model.layers[0].takes_ragged_rows
    lengths = [i * i + 1 for i in range(kernels.MAX_ROWS)]
    caches, alone = [], []
    with torch.no_grad():
        for length in lengths:
            cache = model.new_cache(1, length + 1)
            model(tokens[None, :length], 0, cache=cache)
            next_token = tokens[None, length : length + 1]
            alone.append(model(next_token, length, cache=cache)[0])
            caches.append(cache)
        for rows in range(2, kernels.MAX_ROWS + 1):
            ids, starts = tokens[lengths[:rows]].unsqueeze(1), torch.tensor(lengths[:rows])
            found = model(ids, starts, cache=RaggedKVCache(caches[:rows]))
            assert torch.equal(found, torch.stack(alone[:rows]))


@needs_compiler
def test_cached_float32_equals_uncached() -> None:
    model, tokens = model_of(8, 2, 32), some_tokens()[:, :40]
    expected = exactly(model).double()(tokens)
    use_format(model, "float32")
    with torch.no_grad():
        cache = model.new_cache(3, LENGTH)
        cached = torch.cat([model(tokens[:, i : i + 1], i, cache=cache) for i in range(40)], 1)
        assert difference(cached, model(tokens)) < 1e-5
        assert difference(cached, expected) < 1e-5


@needs_compiler
def test_a_position_outside_the_cache_is_an_error_not_a_write() -> None:
    model = model_of(4, 1, 64, layers=1)
    use_format(model, "bfloat16")
    cache = model.new_cache(2, 8)
    for starts in ([3, 8], [3, -1], [7, 2**40]):
        with pytest.raises(IndexError, match="outside of the KV cache"), torch.no_grad():
            model(torch.ones(2, 1, dtype=torch.long), torch.tensor(starts), cache=cache)


@needs_compiler
def test_parameters_that_move_are_followed() -> None:
    model, other = model_of(4, 1, 64), model_of(4, 1, 64)
    use_format(model, "bfloat16")
    few_rows(model, some_tokens())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.neg_()
    moved = {key: value.clone() for key, value in other.state_dict().items()}
    model.load_state_dict(moved, assign=True)
    expected = few_rows(exactly(model), some_tokens())
    assert difference(few_rows(model, some_tokens()), expected) < 0.02
    del moved
    wide = model.float()
    assert difference(few_rows(wide, some_tokens()), expected) < 1e-5
    assert difference(few_rows(wide.bfloat16(), some_tokens()), expected) < 0.02


def replace_data(layer: torch.nn.Module, weight: torch.Tensor) -> None:
    layer.weight.data = weight


def replace_parameter(layer: torch.nn.Module, weight: torch.Tensor) -> None:
    layer.weight = torch.nn.Parameter(weight)


def load_state(layer: torch.nn.Module, weight: torch.Tensor) -> None:
    layer.load_state_dict({"weight": weight}, assign=True)


@needs_compiler
@pytest.mark.parametrize("replace", [replace_data, replace_parameter, load_state])
@pytest.mark.parametrize("name", ["ffn_norm", "attention.wq", "attention.wo", "feed_forward.w2"])
def test_decoding_takes_weights_that_are_replaced(name: str, replace) -> None:
    model, tokens = model_of(4, 4, 24, layers=1), some_tokens()[:, :4]
    use_format(model, "bfloat16")
    cache = model.new_cache(3, 8)
    with torch.no_grad():
        before = model(tokens, 0, cache=cache)
        layer = model.layers[0].get_submodule(name)
        weight = layer.weight.detach()
        is_square = weight.dim() == 2 and weight.shape == weight.T.shape
        for new in (weight.neg(), weight.T if is_square else weight.flip(0)):
            replace(layer, new)
            found = model(tokens, 0, cache=cache)
            assert difference(found, exactly(model)(tokens)) < 0.03
            assert difference(found, before) > 0.03


@needs_compiler
def test_weights_that_do_not_fit_are_an_error_not_a_read_elsewhere() -> None:
    model, tokens = model_of(4, 1, 64, layers=1), some_tokens()[:, :4]
    use_format(model, "bfloat16")
    layer = model.layers[0].feed_forward.w2
    for wrong in (layer.weight[:-32], layer.weight.float()):
        layer.weight = torch.nn.Parameter(wrong.detach().clone())
        with pytest.raises((RuntimeError, ValueError)), torch.no_grad():
            model(tokens, 0, cache=model.new_cache(3, 8))


def decode_on_a_rank(quantize: str, ranks: int):
    distributed.initialize(ranks)
    torch.manual_seed(0)
    args = ModelArgs(
        dim=256,
        n_layers=2,
        n_heads=4,
        n_kv_heads=4,
        vocab_size=64,
        multiple_of=256,
        max_seq_len=LENGTH,
    )
    whole = {}
    for name, shape in {
        "tok_embeddings": (64, 256), "output": (64, 256), "wq": (256, 256), "wk": (256, 256),
        "wv": (256, 256), "wo": (256, 256), "w1": (768, 256), "w3": (768, 256), "w2": (256, 768),
    }.items():  # fmt: skip
        whole[name] = torch.randn(shape) * 0.1
    model = Transformer(args).bfloat16()
    rank = distributed.model_parallel_rank()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                weight = whole[name.split(".")[-2]]
                cut = next((d for d in (0, 1) if weight.shape[d] != parameter.shape[d]), None)
                parameter.copy_(weight if cut is None else weight.chunk(ranks, cut)[rank])
    use_format(model, quantize)
    return torch.cat([few_rows(model, some_tokens()), many_rows(model, some_tokens())])


@functools.cache
def decoded_on_one_rank(quantize: str) -> torch.Tensor:
    return run_ranks(1, decode_on_a_rank, quantize, 1)[0]


@needs_compiler
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("quantize", ["float32", "bfloat16", "int8", "int4"])
def test_ranks_compute_what_one_does(quantize: str, ranks: int) -> None:
    one = decoded_on_one_rank(quantize)
    for found in run_ranks(ranks, decode_on_a_rank, quantize, ranks):
        if quantize in ("float32", "bfloat16"):
            assert difference(found, one) < (1e-5 if quantize == "float32" else 0.02)
        else:
            assert torch.equal(found, one)  # to the last bit


@needs_compiler
@pytest.mark.parametrize("quantize", ["bfloat16", "int4"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_decoding_model_has_weights_and_a_cache_of_its_own(copied, quantize) -> None:
    model = model_of(4, 2, 32)
    use_format(model, quantize)
    tokens = torch.arange(3).view(1, 3)
    with torch.no_grad():
        model(tokens[:, :2], 0)
        expected = model(tokens[:, 2:], 2)
        other = copied(model)
        model(tokens[:, 1:], 0)
        for norm in (block.attention_norm for block in model.layers):
            norm.weight.zero_()
        assert torch.equal(other(tokens[:, 2:], 2), expected)
        assert not torch.equal(model(tokens[:, 2:], 2), expected)
