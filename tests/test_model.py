import collections
import copy
import math
from pathlib import Path

import pytest
import torch
from fixtures import difference, tiny_args
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from llama.args import weight_shapes
from llama.cache import Int8KVCache, KVCache
from llama.model import (
    Attention,
    FeedForward,
    ModelArgs,
    RMSNorm,
    Transformer,
    TransformerBlock,
    apply_rotary_emb,
    feed_forward_size,
    precompute_freqs_cis,
    repeat_kv,
    rotary_frequencies,
)

REFERENCE = torch.load(Path(__file__).with_name("reference") / "reference.pt", weights_only=True)
MODELS = pytest.mark.parametrize("name", ["llama2", "llama3", "llama3.1"])


def close(ours, theirs):
    """To 1e-4 relative. All values are about one, and what cancels to zero keeps float32's error
    of its terms, so that below 0.1 an absolute 1e-5 takes over."""
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def same(ours, also_ours):
    """The same sums in another order."""
    assert_close(ours, also_ours, rtol=1e-5, atol=1e-5)


def reference_args(name, **overrides):
    return ModelArgs(**{**REFERENCE[name]["args"], "max_batch_size": 3, **overrides})


def weights(name, prefix=""):
    """A reference model's weights, or those below `prefix`, in float32."""
    stored = REFERENCE[name]["weights"].items()
    return {key.removeprefix(prefix): w.float() for key, w in stored if key.startswith(prefix)}


def reference_model(name, **overrides):
    model = Transformer(reference_args(name, **{"max_seq_len": 32, **overrides}))
    model.load_state_dict(weights(name))
    return model


def meta_mask(seq):
    """As Meta's Transformer hands it to its layers: -inf above the diagonal."""
    return torch.full((seq, seq), -math.inf).triu(1)


# Layers, one by one


@MODELS
def test_rms_norm_matches_transformers(name):
    theirs = REFERENCE[name]
    norm = RMSNorm(theirs["args"]["dim"], theirs["args"]["norm_eps"])
    norm.load_state_dict(weights(name, "layers.0.attention_norm."))
    close(norm(theirs["x"]), theirs["norm"])


def test_rms_norm_computes_in_float32_and_returns_the_inputs_dtype():
    x = torch.tensor([[300.0, -400.0]], dtype=torch.float16)  # whose squares are no float16
    out = RMSNorm(2, eps=1e-6).half()(x)
    assert out.dtype == torch.float16
    assert_close(out.float(), x.float() / math.sqrt(125000), rtol=1e-3, atol=0)


def test_rms_norm_adds_eps_to_the_mean_square():
    assert_close(RMSNorm(4, eps=3.0)(torch.ones(1, 4)), torch.full((1, 4), 0.5))
    assert RMSNorm(4).eps == 1e-6


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("theta 10000", {}),
        ("theta 500000", {"theta": 500000.0}),
        ("factor 8", {"theta": 500000.0, "use_scaled": True}),
        ("factor 32", {"theta": 500000.0, "use_scaled": True, "scaling_factor": 32.0}),
    ],
)
def test_rotated_vectors_match_transformers(case, settings):
    theirs = REFERENCE["rotary"]
    positions = theirs["positions"].tolist()
    freqs_cis = precompute_freqs_cis(64, max(positions) + 1, **settings)[positions]
    ours = apply_rotary_emb(theirs["xq"], theirs["xk"], freqs_cis)
    for mine, expected in zip(ours, (theirs[case]["xq"], theirs[case]["xk"]), strict=True):
        for i, position in enumerate(positions):
            # A CPU's pow may err in a frequency's last bit, which counts `position` times.
            atol = 1e-5 + position * 2**-23
            assert_close(mine[:, i], expected[:, i], rtol=1e-4, atol=atol)


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("factor", [None, 8.0, 32.0])
def test_frequencies_are_transformers_to_the_last_bit(theta, factor):
    # At position 100000 a last bit is an angle of 0.006, and models were trained on these.
    pytest.importorskip("transformers")
    from reference.make_reference import LlamaRotaryEmbedding, config

    args = {"dim": 128, "n_heads": 1, "rope_theta": theta}
    if factor is not None:
        args |= {"use_scaled_rope": True, "rope_scaling_factor": factor}
    theirs = LlamaRotaryEmbedding(config(args)).inv_freq
    ours = rotary_frequencies(128, theta, factor is not None, factor or 8.0)
    fast = theirs > 2 * math.pi / 8192 * 4  # those that scaling leaves alone
    assert torch.equal(ours[fast], theirs[fast])
    assert_close(ours, theirs, rtol=3e-7, atol=0)


def test_freqs_cis_are_unit_rotations_by_position_times_frequency():
    table = precompute_freqs_cis(4, 3, theta=100.0)  # frequencies 1 and 0.1
    assert table.shape == (3, 2)
    assert table.dtype == torch.complex64
    expected = torch.tensor([[0.0, 0.0], [1.0, 0.1], [2.0, 0.2]])
    assert_close(table, torch.polar(torch.ones(3, 2), expected))


def test_rotary_turns_neighbouring_pairs():
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    quarter_and_half = torch.polar(torch.ones(1, 2), torch.tensor([[math.pi / 2, math.pi]]))
    xq, xk = apply_rotary_emb(x, 2 * x, quarter_and_half)
    assert_close(xq.flatten(), torch.tensor([0.0, 1.0, 0.0, -1.0]), rtol=0, atol=1e-6)
    assert_close(xk, 2 * xq)


def test_rotary_takes_positions_per_row_and_keeps_the_dtype():
    generator = torch.Generator().manual_seed(1)
    xq = torch.randn(2, 3, 4, 8, generator=generator).bfloat16()
    xk = torch.randn(2, 3, 2, 8, generator=generator).bfloat16()
    table = precompute_freqs_cis(8, 20)
    positions = torch.tensor([[0, 1, 2], [9, 10, 11]])
    together = apply_rotary_emb(xq, xk, table[positions])
    assert [x.dtype for x in together] == [torch.bfloat16] * 2
    for row in range(2):
        alone = apply_rotary_emb(xq[[row]], xk[[row]], table[positions[row]])
        assert torch.equal(together[0][[row]], alone[0])
        assert torch.equal(together[1][[row]], alone[1])


def test_repeat_kv_gives_query_head_h_the_key_head_h_over_n_rep():
    x = torch.arange(2 * 3 * 2 * 4.0).view(2, 3, 2, 4)
    repeated = repeat_kv(x, 3)
    assert repeated.shape == (2, 3, 6, 4)
    for head in range(6):
        assert torch.equal(repeated[:, :, head], x[:, :, head // 3])
    assert torch.equal(repeat_kv(x, 1), x)


@MODELS
@pytest.mark.parametrize("mask", [None, meta_mask(7)], ids=["no mask", "Meta's mask"])
def test_attention_matches_transformers(name, mask):
    attention = Attention(reference_args(name))
    attention.load_state_dict(weights(name, "layers.0.attention."))
    theirs = REFERENCE[name]
    close(attention(theirs["x"], 0, theirs["freqs_cis"], mask), theirs["attention"])


@MODELS
def test_feed_forward_matches_transformers(name):
    theirs, args = REFERENCE[name], reference_args(name)
    feed_forward = FeedForward(
        dim=args.dim,
        hidden_dim=4 * args.dim,
        multiple_of=args.multiple_of,
        ffn_dim_multiplier=args.ffn_dim_multiplier,
    )
    assert feed_forward.w1.weight.shape == (theirs["hidden"], args.dim)
    feed_forward.load_state_dict(weights(name, "layers.0.feed_forward."))
    close(feed_forward(theirs["x"]), theirs["feed_forward"])


@MODELS
@pytest.mark.parametrize("mask", [None, meta_mask(7)], ids=["no mask", "Meta's mask"])
def test_block_matches_transformers(name, mask):
    block = TransformerBlock(0, reference_args(name))
    block.load_state_dict(weights(name, "layers.0."))
    theirs = REFERENCE[name]
    close(block(theirs["x"], 0, theirs["freqs_cis"], mask), theirs["block"])


# The whole model


@MODELS
def test_logits_match_transformers(name):
    theirs, model = REFERENCE[name], reference_model(name)
    close(model(theirs["tokens"]), theirs["logits"])
    close(model.forward(theirs["tokens"], 0), theirs["logits"])


@MODELS
def test_logits_of_a_long_row_match_transformers(name):
    theirs = REFERENCE[name]
    tokens, model = theirs["long_tokens"], reference_model(name, max_seq_len=400)
    last = torch.arange(396, 400).unsqueeze(0)
    close(model(tokens, logits_at=last), theirs["long_logits"])
    model(tokens[:, :300], 0)
    close(model(tokens[:, 300:], 300)[:, -4:], theirs["long_logits"])


@MODELS
def test_step_by_step_through_the_models_own_cache(name):
    theirs, model = REFERENCE[name], reference_model(name)
    for row in range(3):  # each begins again at position 0, over what the last one left
        tokens = theirs["tokens"][[row]]
        steps = [model(tokens[:, i : i + 1], i) for i in range(17)]
        close(torch.cat(steps, dim=1), theirs["logits"][[row]])
        same(torch.cat(steps, dim=1), model(tokens))
    assert model.cache.batch_size == 3
    assert model.cache.seq_len == 32


@MODELS
@pytest.mark.parametrize("per_row", [False, True], ids=["int", "tensor"])
def test_chunked_prefill(name, per_row):
    theirs, model = REFERENCE[name], reference_model(name)
    chunks, start = [], 0
    for size in (5, 1, 7, 4):
        start_pos = torch.full((3,), start) if per_row else start
        chunks.append(model(theirs["tokens"][:, start : start + size], start_pos))
        start += size
    close(torch.cat(chunks, dim=1), theirs["logits"])


@MODELS
def test_ragged_batch_in_a_cache_of_its_own(name):
    theirs, model = REFERENCE[name], reference_model(name)
    tokens, lengths = theirs["tokens"], torch.tensor([5, 9, 12])
    prompts = tokens[:, :12].clone()
    for row, length in enumerate(lengths):
        prompts[row, length:] = 3  # padding, on the right
    cache = model.new_cache(batch_size=3, seq_len=20)
    prefill = model(prompts, 0, cache=cache)
    for row, length in enumerate(lengths):
        close(prefill[row, :length], theirs["logits"][row, :length])
    rows = torch.arange(3)
    for step in range(5):
        at = lengths + step
        logits = model(tokens[rows, at].unsqueeze(1), at, cache=cache)
        close(logits[:, 0], theirs["logits"][rows, at])
        alone = torch.stack([model(tokens[[r], : at[r] + 1])[0, -1] for r in range(3)])
        same(logits[:, 0], alone)
    assert model.cache is None


@MODELS
def test_several_tokens_from_a_position_of_each_rows_own(name):
    theirs, model = REFERENCE[name], reference_model(name)
    tokens, rows = theirs["tokens"], torch.arange(3).unsqueeze(1)
    cache = model.new_cache(3, 32)
    model(tokens[:, :12], 0, cache=cache)
    at = torch.tensor([[2], [12], [7]]) + torch.arange(4)
    logits = model(tokens[rows, at], at[:, 0], cache=cache)
    close(logits, theirs["logits"][rows, at])


def test_what_the_cache_held_before_does_not_matter():
    theirs, model = REFERENCE["llama3"], reference_model("llama3")
    cache = model.new_cache(3, 100)
    generator = torch.Generator().manual_seed(1)
    for part in (cache.k, cache.v):
        part.copy_(100 * torch.randn(part.shape, generator=generator))
    close(model(theirs["tokens"], torch.zeros(3, dtype=torch.long), cache=cache), theirs["logits"])
    close(model(theirs["tokens"], 0, cache=cache), theirs["logits"])


def test_a_view_of_some_rows_leaves_the_others_alone():
    theirs, model = REFERENCE["llama3"], reference_model("llama3")
    cache = model.new_cache(4, 32)
    logits = model(theirs["tokens"][1:], torch.tensor([0, 0]), cache=cache.view(1, 2, 32))
    close(logits, theirs["logits"][1:])
    assert cache.k[:, 1:3, :, :17].abs().amin(dim=(-1, -2)).gt(0).all()
    assert not cache.k[:, [0, 3]].any()
    assert not cache.k[:, :, :, 17:].any()


@pytest.mark.parametrize("start_pos", [None, 0, torch.zeros(3, dtype=torch.long)])
def test_logits_at_picks_columns_of_each_row(start_pos):
    theirs, model = REFERENCE["llama2"], reference_model("llama2")
    columns = torch.tensor([[16, 0], [3, 4], [8, 8]])
    logits = model(theirs["tokens"], start_pos, logits_at=columns)
    assert logits.shape == (3, 2, 97)
    close(logits, theirs["logits"][torch.arange(3).unsqueeze(1), columns])


# Gradients, modes and dtypes


@MODELS
def test_gradients_match_transformers(name):
    pytest.importorskip("transformers")
    from reference.make_reference import hugging_face_model, hugging_face_weights

    theirs, model = REFERENCE[name], reference_model(name)
    hugging_face = hugging_face_model(theirs["args"], theirs["hidden"], theirs["weights"])
    tokens, targets = theirs["tokens"][:, :-1], theirs["tokens"][:, 1:].flatten()
    for logits in (model(tokens), hugging_face(tokens).logits):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets).backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    ours = hugging_face_weights(gradients, model.params.head_dim)
    assert len(ours) == len(list(hugging_face.parameters()))
    for key, parameter in hugging_face.named_parameters():
        scale = parameter.grad.abs().max()
        assert scale > 1e-4, key
        assert_close(ours[key] / scale, parameter.grad.float() / scale, rtol=1e-4, atol=1e-5)


def test_a_cache_keeps_no_graph():
    model = Transformer(tiny_args())
    tokens = torch.ones(1, 3, dtype=torch.long)
    cache = model.new_cache(1, 8)
    for logits in (model(tokens, 0), model(tokens, 0, cache=cache)):
        assert not logits.requires_grad
    assert not cache.k.requires_grad
    assert not model.cache.v.requires_grad
    assert torch.is_grad_enabled()
    assert model(tokens).requires_grad
    with torch.no_grad():
        assert not model(tokens).requires_grad


def test_inference_mode_first_then_no_grad_then_training():
    theirs, model = REFERENCE["llama3"], reference_model("llama3")
    tokens, logits = theirs["tokens"], theirs["logits"]
    with torch.inference_mode():
        close(model(tokens, 0), logits)  # makes the model's cache
        cache = model.new_cache(3, 17)
        model(tokens[:, :9], 0, cache=cache)
    close(model(tokens[:, 9:], 9, cache=cache), logits[:, 9:])
    with torch.no_grad():
        close(model(tokens, 0), logits)
    model.train()
    model(tokens).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.inference_mode():
        close(model(tokens[:, 9:], 9), logits[:, 9:])


@MODELS
def test_a_bfloat16_model_gives_float32_logits_close_to_float32s(name):
    theirs, model = REFERENCE[name], reference_model(name).bfloat16()
    for logits in (model(theirs["tokens"]), model(theirs["tokens"], 0)):
        assert logits.dtype == torch.float32
        error = (logits - theirs["logits"]).norm() / theirs["logits"].norm()
        assert 1e-4 < error < 0.02  # 0.01 and less; not zero, or it was no bfloat16 model
    assert model.cache.k.dtype == torch.bfloat16


@MODELS
def test_rotary_frequencies_survive_a_change_of_dtype(name):
    theirs, model = REFERENCE[name], reference_model(name)
    before = model.freqs.clone()
    for dtype in (torch.bfloat16, torch.float16):
        model.to(dtype)
        assert model.freqs.dtype == torch.float32
        assert torch.equal(model.freqs, before)
    model.float().load_state_dict(weights(name))  # what was rounded comes back, but not freqs
    close(model(theirs["tokens"]), theirs["logits"])


def test_a_change_of_dtype_after_the_models_cache_was_made():
    theirs, model = REFERENCE["llama2"], reference_model("llama2").bfloat16()
    model(theirs["tokens"], 0)
    close(model.float()(theirs["tokens"], 0), theirs["logits"])
    assert model.cache.k.dtype == torch.float32


def test_two_models_of_different_dtype_take_turns():
    theirs = REFERENCE["llama2"]
    tokens = theirs["tokens"]
    wide, narrow = reference_model("llama2"), reference_model("llama2").bfloat16()
    narrow_alone = copy.deepcopy(narrow)(tokens, 0)
    wide_steps, narrow_steps = [], []
    for i in range(17):
        narrow_steps.append(narrow(tokens[:, i : i + 1], i))
        wide_steps.append(wide(tokens[:, i : i + 1], i))
    close(torch.cat(wide_steps, dim=1), theirs["logits"])
    assert_close(torch.cat(narrow_steps, dim=1), narrow_alone, rtol=0, atol=0.1)
    assert (wide.cache.k.dtype, narrow.cache.k.dtype) == (torch.float32, torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32


def test_a_copy_has_a_cache_of_its_own():
    theirs, model = REFERENCE["llama3"], reference_model("llama3")
    tokens, logits = theirs["tokens"], theirs["logits"]
    model(tokens[:, :9], 0)
    other = copy.deepcopy(model)
    model(tokens[:, :9].flip(1), 0)
    close(other(tokens[:, 9:], 9), logits[:, 9:])
    other.norm.weight.data.zero_()
    close(model(tokens, 0), logits)


# Names and shapes


def test_state_dict_has_metas_names():
    layer = [
        *("attention.wq", "attention.wk", "attention.wv", "attention.wo"),
        *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
        *("attention_norm", "ffn_norm"),
    ]
    names = ["tok_embeddings", "norm", "output"]
    names += [f"layers.{i}.{name}" for i in range(2) for name in layer]
    state = Transformer(tiny_args()).state_dict()
    assert sorted(state) == sorted(f"{name}.weight" for name in names)


def test_weights_have_metas_shapes():
    state = Transformer(tiny_args(dim=48, n_heads=6, n_kv_heads=2)).state_dict()
    shapes = {key: tuple(weight.shape) for key, weight in state.items()}
    assert shapes["tok_embeddings.weight"] == shapes["output.weight"] == (64, 48)
    assert shapes["layers.1.attention.wq.weight"] == (48, 48)
    assert shapes["layers.1.attention.wk.weight"] == (16, 48)
    assert shapes["layers.1.attention.wv.weight"] == (16, 48)
    assert shapes["layers.1.attention.wo.weight"] == (48, 48)
    assert shapes["layers.1.feed_forward.w1.weight"] == (128, 48)
    assert shapes["layers.1.feed_forward.w2.weight"] == (48, 128)
    assert shapes["layers.1.feed_forward.w3.weight"] == (128, 48)
    assert shapes["layers.1.ffn_norm.weight"] == shapes["norm.weight"] == (48,)


def test_attributes_that_metas_have():
    model = Transformer(params=tiny_args())
    assert (model.vocab_size, model.n_layers, model.params.dim) == (64, 2, 32)
    assert [layer.layer_id for layer in model.layers] == [0, 1]


@pytest.mark.parametrize(
    ("dim", "multiple_of", "multiplier", "hidden"),
    [
        (4096, 256, None, 11008),  # Llama 2 7B
        (5120, 256, None, 13824),  # 2 13B
        (8192, 4096, 1.3, 28672),  # 2 and 3 70B
        (4096, 1024, 1.3, 14336),  # 3 8B
        (2048, 256, 1.5, 8192),  # 3.2 1B
        (3072, 256, 1.0, 8192),  # 3.2 3B
        (16384, 4096, 1.2, 53248),  # 3.1 405B
    ],
)
def test_feed_forward_sizes_of_released_models(dim, multiple_of, multiplier, hidden):
    assert feed_forward_size(4 * dim, multiple_of, multiplier) == hidden


# Arguments


def test_model_args_defaults_are_llama_2s():
    args = ModelArgs()
    assert args.n_kv_heads == args.n_heads == 32
    assert (args.rope_theta, args.use_scaled_rope, args.head_dim) == (10000.0, False, 128)


@pytest.mark.parametrize(
    ("shape", "factor"),
    [
        ({"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8}, 32.0),  # 3.2 1B
        ({"dim": 3072, "n_layers": 28, "n_heads": 24, "n_kv_heads": 8}, 32.0),  # 3.2 3B
        ({"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8}, 8.0),  # 3.1 8B
        ({"dim": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8}, 8.0),  # 3.1, 3.3 70B
        ({"dim": 2048, "n_layers": 28, "n_heads": 32}, 8.0),
        ({"dim": 2048, "n_layers": 16, "n_heads": 32, "rope_scaling_factor": 8.0}, 8.0),
        ({"dim": 4096, "n_layers": 32, "n_heads": 32, "rope_scaling_factor": 32.0}, 32.0),
    ],
)
def test_rotary_scaling_factor_follows_from_the_shape_unless_given(shape, factor):
    assert ModelArgs(**shape, use_scaled_rope=True).rope_scaling_factor == factor


def test_the_model_uses_its_own_scaling():
    def freqs(**overrides):
        return Transformer(tiny_args(rope_theta=5e5, **overrides)).freqs

    plain, eight = freqs(), freqs(use_scaled_rope=True)
    thirty_two = freqs(use_scaled_rope=True, rope_scaling_factor=32.0)
    assert_close(plain[-1] / eight[-1], torch.tensor(8.0))
    assert_close(plain[-1] / thirty_two[-1], torch.tensor(32.0))
    assert torch.equal(freqs(rope_scaling_factor=32.0), plain)


@pytest.mark.parametrize(
    ("shape", "ranks", "misfit"),
    [
        ({}, (1, 2, 4), None),
        ({"n_heads": 8, "n_kv_heads": 2}, (1, 2, 4, 8), None),  # 4 and 8 ranks share KV heads
        ({}, (3,), "n_heads (4) is not divisible by the number of ranks (3)"),
        (
            {"dim": 48, "n_heads": 6, "n_kv_heads": 2},
            (3,),
            "the number of ranks (3) is not divisible by n_kv_heads (2)",
        ),
        (
            {"dim": 48, "n_heads": 12, "n_kv_heads": 6},
            (4,),
            "n_kv_heads (6) is not divisible by the number of ranks (4)",
        ),
        ({"multiple_of": 1}, (2,), "the feed-forward size (85) is not divisible by the number of"),
        ({"vocab_size": 66}, (4,), "vocab_size (66) is not divisible by the number of ranks (4)"),
    ],
)
def test_which_numbers_of_ranks_can_share_a_shape(shape, ranks, misfit):
    for count in ranks:
        found = tiny_args(**shape).misfit(count)
        assert found == misfit or (found and misfit and found.startswith(misfit))


@pytest.mark.parametrize("shape", [{}, {"n_kv_heads": None}, {"head_dim": 12}, {"n_kv_heads": 1}])
def test_the_shapes_of_the_weights_are_those_of_the_model(shape):
    args = tiny_args(**shape)
    state = Transformer(args).state_dict()
    assert weight_shapes(args) == {key: tuple(weight.shape) for key, weight in state.items()}
    assert list(weight_shapes(args)) == list(state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_heads": 5, "n_kv_heads": 5}, r"dim \(32\) is not divisible by n_heads \(5\)"),
        ({"n_kv_heads": 3}, r"n_heads \(4\) is not divisible by n_kv_heads \(3\)"),
        ({"n_kv_heads": 8}, r"n_heads \(4\) is not divisible by n_kv_heads \(8\)"),
        ({"dim": 12}, r"head_dim \(3\) is not divisible by two.*\(2\)"),
        ({"head_dim": 5}, r"head_dim \(5\) is not divisible by two.*\(2\)"),
        ({"head_dim": 0}, "head_dim=0 should"),
        ({"rope_low_freq_factor": 4.0}, r"rope_low_freq_factor=4\.0 should be less than"),
        ({"dim": 0}, "dim=0 should"),
        ({"n_layers": 0}, "n_layers=0 should"),
        ({"n_layers": 2**40}, "n_layers=1099511627776 should be at most 10000"),
        ({"rope_theta": 10**400}, "rope_theta=1000"),
        ({"n_heads": -4}, "n_heads=-4 should"),
        ({"n_kv_heads": 0}, "n_kv_heads=0 should"),
        ({"vocab_size": 0}, "vocab_size=0 should"),
        ({"vocab_size": -2}, "vocab_size=-2 should"),
        ({"multiple_of": 0}, "multiple_of=0 should"),
        ({"ffn_dim_multiplier": -1.3}, r"ffn_dim_multiplier=-1\.3 should"),
        ({"norm_eps": 0.0}, r"norm_eps=0\.0 should"),
        ({"norm_eps": math.nan}, "norm_eps=nan should"),
        ({"rope_theta": 0.0}, r"rope_theta=0\.0 should"),
        ({"rope_scaling_factor": -8.0}, r"rope_scaling_factor=-8\.0 should"),
        ({"max_batch_size": 0}, "max_batch_size=0 should"),
        ({"max_seq_len": -1}, "max_seq_len=-1 should"),
    ],
)
def test_model_args_refuse_what_does_not_fit_with_the_numbers(wrong, message):
    with pytest.raises(ValueError, match=message):
        tiny_args(**wrong)


def test_model_args_refuse_what_is_no_number():
    with pytest.raises(TypeError, match="max_seq_len='512' should be a number"):
        tiny_args(max_seq_len="512")


def test_an_unknown_vocabulary_is_refused_when_the_model_is_built():
    args = tiny_args(vocab_size=-1)  # as Llama 2's params.json has it
    with pytest.raises(ValueError, match="vocab_size=-1"):
        Transformer(args)


# Wrong calls, and the cache


def test_a_cache_without_a_position_is_refused():
    model = Transformer(tiny_args())
    with pytest.raises(ValueError, match="needs start_pos"):
        model(torch.ones(1, 3, dtype=torch.long), cache=model.new_cache(1, 8))


def test_tokens_that_are_no_batch_are_refused():
    with pytest.raises(ValueError, match=r"\(batch, seq\), not \(3,\)"):
        Transformer(tiny_args())(torch.ones(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("rows", "seq", "start_pos", "message"),
    [
        (5, 3, 0, r"5 rows of 3 positions .* 4 \(max_batch_size\) of 32 \(max_seq_len\)"),
        (1, 33, 0, r"1 rows of 33 positions .* of 32 \(max_seq_len\)"),
        (1, 2, 31, r"1 rows of 33 positions .* of 32 \(max_seq_len\)"),
        (5, 1, torch.zeros(5, dtype=torch.long), r"5 rows of 32 positions .* 4 \(max_batch_size\)"),
    ],
)
def test_more_than_the_models_cache_holds_is_refused(rows, seq, start_pos, message):
    model = Transformer(tiny_args())
    with pytest.raises(ValueError, match=message):
        model(torch.ones(rows, seq, dtype=torch.long), start_pos)
    assert model(torch.ones(4, 1, dtype=torch.long), 31).shape == (4, 1, 64)  # just fits


@pytest.mark.parametrize("start_pos", [-1, torch.tensor(0), torch.zeros(3, dtype=torch.long)])
def test_a_start_that_is_none_is_refused(start_pos):
    model = Transformer(tiny_args())
    with pytest.raises(ValueError, match="start_pos should be 0 or more"):
        model(torch.ones(2, 3, dtype=torch.long), start_pos)


def test_a_row_that_runs_over_the_end_of_the_cache_is_refused():
    model = Transformer(tiny_args())
    with pytest.raises(IndexError, match="32"):
        model(torch.ones(2, 2, dtype=torch.long), torch.tensor([0, 31]))


def small_cache():
    """Two layers, three rows, one head, four positions of size one: all values different."""
    values = torch.arange(2 * 3 * 4.0).view(2, 3, 1, 4, 1)
    return KVCache(values.clone(), values + 100)


@pytest.mark.parametrize(
    ("rows", "length", "message"),
    [
        ((2, 2), 4, r"4 rows of 4 positions .* 3 \(max_batch_size\)"),
        ((0, 3), 5, r"3 rows of 5 positions .* of 4 \(max_seq_len\)"),
        ((0, 1), 0, r"1 rows of 0 positions .* of 4 \(max_seq_len\)"),
    ],
)
def test_cache_view_refuses_more_than_there_is(rows, length, message):
    with pytest.raises(ValueError, match=message):
        small_cache().view(*rows, length)
    assert small_cache().view(1, 2, 4).batch_size == 2


def test_cache_view_and_layer_share_memory():
    cache = small_cache()
    part = cache.view(1, 2, 3).layer(1)
    assert part.k.shape == (2, 1, 3, 1)
    part.k.zero_()
    part.v[0, 0, 2] = -1
    zeros = (cache.k == 0).nonzero().tolist()
    assert zeros == [[0, 0, 0, 0, 0]] + [[1, row, 0, at, 0] for row in (1, 2) for at in range(3)]
    assert cache.v[1, 1, 0, 2] == -1


def test_cache_update_writes_each_row_at_its_own_position():
    layer = small_cache().layer(0)
    expected_k, expected_v = layer.k.clone(), layer.v.clone()
    new = torch.tensor([[[-1.0], [-2.0]], [[-3.0], [-4.0]], [[-5.0], [-6.0]]]).unsqueeze(-1)
    for row, at in enumerate((2, 0, 1)):
        expected_k[row, 0, at : at + 2] = new[row, :, 0]
        expected_v[row, 0, at : at + 2] = 10 * new[row, :, 0]
    keys, values = layer.update(torch.tensor([2, 0, 1]), new, 10 * new)
    assert torch.equal(keys, expected_k)
    assert torch.equal(values, expected_v)
    assert torch.equal(layer.k, expected_k)


def test_cache_rows_are_copied_up_to_a_length():
    cache, before = small_cache(), small_cache()
    cache.copy_row(source=0, target=2, length=3)
    for now, then in ((cache.k, before.k), (cache.v, before.v)):
        assert torch.equal(now[:, 2, :, :3], then[:, 0, :, :3])
        assert torch.equal(now[:, 2, :, 3:], then[:, 2, :, 3:])
        assert torch.equal(now[:, :2], then[:, :2])


def test_a_larger_cache_takes_over_a_smaller_one():
    small, large = small_cache(), KVCache.zeros((2, 4, 1, 6, 1), torch.float32, "cpu")
    large.copy_from(small)
    assert torch.equal(large.k[:, :3, :, :4], small.k)
    assert torch.equal(large.v[:, :3, :, :4], small.v)
    assert large.k.sum() == small.k.sum()
    assert large.v.sum() == small.v.sum()


def int8_cache(*shape):
    """With keys that fill a shape (layers, batch, heads, seq, head_dim), values twice that."""
    cache = Int8KVCache.zeros(shape, torch.float32, "cpu")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for i in range(shape[0]):
        cache.layer(i).update(0, x[i].transpose(1, 2), 2 * x[i].transpose(1, 2))
    return cache, x


def test_an_int8_cache_rounds_to_steps_of_the_largest():
    cache, x = int8_cache(2, 3, 4, 5, 16)
    step = x.abs().amax(-1, keepdim=True) / 127
    new = torch.randn(3, 1, 4, 16)
    for i in range(2):
        keys, values = cache.layer(i).update(torch.tensor([4, 4, 4]), new, new)
        assert keys.dtype == values.dtype == torch.float32
        error = (keys - x[i])[..., :4, :].abs()
        assert (error <= step[i, :, :, :4] * 0.501).all()
        assert error.max() > 0
        assert torch.equal(values[..., :4, :], 2 * keys[..., :4, :])
        assert difference(keys[..., 4, :], new[:, 0]) < 0.01
    assert cache.k.dtype == torch.int8
    assert sum(part.nbytes for part in cache.tensors) == 2 * (x.numel() + 4 * x[..., 0].numel())


class LargestTensors(TorchDispatchMode):
    """How many elements the largest new tensor of each dtype has."""

    def __init__(self):
        super().__init__()
        self.sizes = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result._base is None:
            self.sizes[result.dtype] = max(self.sizes[result.dtype], result.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_int8_cache_converts_what_attention_reads(dtype):
    cache = Int8KVCache.zeros((1, 2, 3, 2048, 8), dtype, "cpu").layer(0)
    cache.k_scale[:, :, 600:], cache.v_scale[:, :, 600:] = math.nan, math.nan
    x = torch.randn(2, 2, 3, 8, dtype=dtype)
    for start in (torch.tensor([3, 598]), 598):
        with LargestTensors() as largest:
            keys, values = cache.update(start, x, -x)
        if dtype == torch.bfloat16:
            assert largest.sizes[torch.float32] < 600 * x[:, 0].numel() / 10  # scales are float32
        for found, numbers, scales in (
            (keys, cache.k, cache.k_scale),
            (values, cache.v, cache.v_scale),
        ):
            assert found.shape == numbers.shape
            expected = (numbers[:, :, :600] * scales[:, :, :600]).to(dtype)
            assert torch.equal(found[:, :, :600], expected)
            assert not found[:, :, 600:].any()


def test_an_int8_cache_keeps_what_is_not_finite_to_its_position():
    cache = Int8KVCache.zeros((1, 1, 2, 3, 8), torch.float32, "cpu").layer(0)
    x = torch.randn(1, 3, 2, 8)
    x[0, 1, 0, 5], x[0, 2, 1] = math.inf, 0
    keys, _ = cache.update(0, x, x)
    assert not keys[0, 0, 1].isfinite().any()
    assert keys[0, 1].isfinite().all()
    assert keys[0, 0, [0, 2]].isfinite().all()
    assert not keys[0, 1, 2].any()


def test_an_int8_cache_is_viewed_copied_and_cleared_with_its_scales():
    cache, _ = int8_cache(2, 3, 1, 4, 8)
    large = Int8KVCache.zeros((2, 4, 1, 6, 8), torch.float32, "cpu")
    large.copy_from(cache)
    for part, whole in zip(cache.tensors, large.tensors, strict=True):
        assert torch.equal(whole[:, :3, :, :4], part)
    large.copy_row(source=0, target=3, length=2)
    large.clear_row(1)
    for part, whole in zip(cache.tensors, large.tensors, strict=True):
        assert torch.equal(whole[:, 3, :, :2], part[:, 0, :, :2])
        assert not whole[:, 3, :, 2:].any()
        assert not whole[:, 1].any()
    assert [part.shape[2] for part in large.view(1, 2, 3).layer(1).tensors] == [3, 3, 3, 3]


def test_a_new_cache_is_zeros_in_the_models_dtype():
    model = Transformer(tiny_args()).bfloat16()
    with torch.inference_mode():
        cache = model.new_cache(3, 7)
    assert cache.k.shape == cache.v.shape == (2, 3, 2, 7, 8)
    assert cache.k.dtype == torch.bfloat16
    assert not cache.k.any()
    assert not cache.v.any()
    assert not cache.k.is_inference()
