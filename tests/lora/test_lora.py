"""Adapters: layers, ranks, folders that `peft` reads too, and merged checkpoints."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fixtures import difference, needs_compiler, run_ranks, tiny_args, use_kernels, write_shards

from llama import Llama, Transformer, cli, distributed, kernels
from llama.args import ModelArgs, weight_shapes
from llama.checkpoint.convert import convert, merge
from llama.checkpoint.loading import load
from llama.checkpoint.opening import open_checkpoint
from llama.lora.adapter_files import open_adapter
from llama.lora.adapter_layers import (
    TARGETS,
    LoraConfig,
    LoRALinear,
    add_lora,
    load_adapter,
    lora_parameters,
    save_adapter,
)
from llama.quantization.inference_block import InferenceBlock
from llama.quantization.linear_layers import InferenceLinear, PackedLinear, use_format
from llama.storage import sharding as weights_module
from llama.storage import tensor_files

safetensors = pytest.importorskip("safetensors.torch")
CPU = torch.device("cpu")
TINY = Path(__file__).parents[2] / "params" / "tiny"
TOKENS = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(0))
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def model_of(**shape: Any) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(tiny_args(**shape))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
            else:
                parameter.copy_(torch.rand(parameter.shape) + 0.5)
    return model


def shake(model: torch.nn.Module, size: float = 0.1) -> None:
    """Gives A and B values as training may have left them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter += size * torch.randn(parameter.shape, generator=generator)


def adapted(model: Transformer, **config: Any) -> Transformer:
    add_lora(model, LoraConfig(**{"r": 4, "alpha": 6, "targets": TARGETS, **config}))
    shake(model)
    return model


def logits(model: Transformer, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens)


def merged_by_hand(model: Transformer) -> Transformer:
    """A plain model with W + (alpha / r) B A where the adapted one has W, A and B; in float32."""
    plain = Transformer(model.params)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            layer = model.get_submodule(name.removesuffix(".weight"))
            base = layer.base if isinstance(layer, LoRALinear) else layer
            weight = base.matrix if isinstance(base, InferenceLinear) else base.weight
            if isinstance(weight, kernels.Packed):
                weight = kernels.unpack(weight, torch.float32)
            parameter.copy_(weight)
            if isinstance(layer, LoRALinear):
                parameter += layer.scale * layer.lora_B.float() @ layer.lora_A.float()
    return plain


@pytest.fixture(scope="module")
def of_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the bundled model, of rank 5, that leaves it able to speak."""
    folder = tmp_path_factory.mktemp("adapter")
    model = load(TINY, device=CPU, dtype=torch.float32)
    add_lora(model, LoraConfig(r=5, alpha=5, targets=TARGETS))
    shake(model, 0.1)
    save_adapter(model, folder, base=TINY)
    return folder


def build(adapter: Path | None, quantize: str | None = None, dtype: str | None = None) -> Llama:
    return Llama.build(TINY, device="cpu", dtype=dtype, quantize=quantize, adapter=adapter)


STARTS = ["Once upon a time", "One day, a dog", "Lily", "The sun was", "Tom and his mom went"]


# ---------------------------------------------------------------- layers


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained() -> None:
    model, plain = model_of(), model_of()
    add_lora(model, LoraConfig(r=8, targets=("wq", "w2", "output")))
    assert torch.equal(logits(model), logits(plain))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = [f"layers.{i}.{name}" for i in (0, 1) for name in ("attention.wq", "feed_forward.w2")]
    assert trained == {f"{layer}.lora_{x}" for layer in [*layers, "output"] for x in "AB"}
    assert {id(p) for p in lora_parameters(model)} == {
        id(p) for p in model.parameters() if p.requires_grad
    }
    assert {p.dtype for p in lora_parameters(model)} == {torch.float32}
    a, b = lora_parameters(model)[:2]
    assert (a.shape, b.shape) == ((8, 32), (32, 8))
    bound = 1 / math.sqrt(32)  # Kaiming-uniform with nn.Linear's slope
    assert 0.8 * bound < a.abs().max() <= bound
    assert not b.any()
    assert not torch.equal(a, lora_parameters(model)[4])
    assert {m.scale for m in model.modules() if isinstance(m, LoRALinear)} == {4}


def test_the_seed_makes_a() -> None:
    models = [model_of() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        add_lora(model, LoraConfig(seed=seed))
    first, same, other = (lora_parameters(model)[0] for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("target", TARGETS)
def test_each_layer_computes_what_it_would_merged(target: str) -> None:
    model, plain = model_of(), logits(model_of())
    adapted(model, targets=(target,))
    count = sum(isinstance(module, LoRALinear) for module in model.modules())
    assert count == (1 if target == "output" else 2)
    found = logits(model)
    assert difference(found, logits(merged_by_hand(model))) < 1e-5
    assert difference(found, plain) > 0.01


@pytest.mark.parametrize("kernel", ["native", "off"])
@pytest.mark.parametrize(("name", "most"), [("bfloat16", 0.03), ("int8", 0.06), ("int4", 0.06)])
def test_it_stands_on_every_format(name: str, most: float, kernel: str, monkeypatch) -> None:
    if kernel == "off":
        use_kernels("off", monkeypatch)
    model = model_of().bfloat16()
    use_format(model, name)
    before = logits(model)
    adapted(model, r=3)
    expected = logits(merged_by_hand(model))
    assert difference(before, expected) > 0.3
    assert difference(logits(model), expected) < most
    cache = model.new_cache(2, 32)
    with torch.no_grad():
        parts = [model(TOKENS[:, :17], 0, cache=cache), model(TOKENS[:, 17:19], 17, cache=cache)]
        parts.append(model(TOKENS[:, 19:], torch.tensor([19, 19]), cache=cache))
    assert difference(torch.cat(parts, 1), expected) < most


@pytest.mark.parametrize("kernel", ["native", "off"])
@pytest.mark.parametrize(("name", "most"), [("bfloat16", 0.05), ("int4", 0.15)])
def test_a_row_that_is_decoded_depends_on_no_other(
    name: str, most: float, kernel: str, monkeypatch
) -> None:
    if kernel == "off":
        use_kernels("off", monkeypatch)
    # With heads of 64 there is a native kernel for attention, where the processor has one.
    model = model_of(dim=64, head_dim=64, n_heads=4, n_kv_heads=1, multiple_of=64).bfloat16()
    use_format(model, name)
    adapted(model)
    expected = logits(merged_by_hand(model))
    cache, starts = model.new_cache(2, 32), torch.tensor([18, 7])
    with torch.no_grad():
        model(TOKENS, 0, cache=cache)
        last = torch.stack([TOKENS[i, start : start + 1] for i, start in enumerate(starts)])
        together = model(last, starts, cache=cache)
        for i, start in enumerate(starts):
            row = cache.view(i, 1, 32)
            alone = model(last[i : i + 1], starts[i : i + 1], cache=row)
            assert difference(alone[0, 0], expected[i, start]) < most
            if kernel == "native":
                assert torch.equal(alone[0], together[i])
            assert difference(together[i], alone[0]) < 0.03


@needs_compiler
def test_the_small_products_of_decoding_are_native(of_tiny: Path, monkeypatch) -> None:
    shapes, linear = [], kernels.linear

    def note(x: torch.Tensor, weight: Any, *others: Any) -> torch.Tensor:
        shapes.append((len(x), *weight.shape))
        return linear(x, weight, *others)

    model = build(of_tiny, "int4").model
    monkeypatch.setattr(kernels, "linear", note)
    with torch.no_grad():
        model(TOKENS[:, :1], 0, cache=model.new_cache(2, 32))
    hidden = model.params.hidden_dim
    assert shapes.count((2, 32, hidden)) == shapes.count((2, 256, 32)) / 3 == model.n_layers
    assert len(shapes) == 3 * (7 * model.n_layers + 1)


def test_blocks_without_adapters_keep_their_kernels() -> None:
    model = model_of().bfloat16()
    use_format(model, "bfloat16")
    add_lora(model, LoraConfig(targets=("output",)))
    assert not any(block.is_adapted for block in model.layers if isinstance(block, InferenceBlock))
    model = model_of().bfloat16()
    use_format(model, "bfloat16")
    adapted(model, targets=("w1",))
    assert all(block.is_adapted for block in model.layers if isinstance(block, InferenceBlock))


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_base(x_dtype: torch.dtype) -> None:
    model = adapted(model_of()).to(x_dtype)
    layer = model.layers[0].attention.wq
    assert isinstance(layer, LoRALinear)
    for parameter in (layer.lora_A, layer.lora_B):
        parameter.data = parameter.data.float()
    x = torch.randn(3, 32).to(x_dtype)
    assert layer(x).dtype == layer.base(x).dtype == x_dtype
    with torch.no_grad():
        assert layer(x).dtype == x_dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        layer(x).float().pow(2).sum().backward()
    assert layer.lora_A.grad is not None
    assert layer.lora_A.grad.dtype == torch.float32


def gradients(model: Transformer) -> list[torch.Tensor]:
    loss = F.cross_entropy(model(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten())
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


def test_gradients_are_those_of_the_merged_weights() -> None:
    model = adapted(model_of())
    plain = merged_by_hand(model)
    of_weight = dict(zip(dict(plain.named_parameters()), gradients(plain), strict=True))
    found = iter(gradients(model))
    model.requires_grad_(False)
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            g = of_weight[f"{name}.weight"]
            expected = layer.scale * layer.lora_B.T @ g, layer.scale * g @ layer.lora_A.T
            for gradient in expected:
                assert difference(next(found), gradient) < 1e-5
    assert next(found, None) is None


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_packed_weights_are_not_kept_unpacked_for_the_gradient(name: str) -> None:
    model = model_of().bfloat16()
    use_format(model, name)
    adapted(model)
    plain = adapted(model_of().bfloat16())
    with torch.no_grad():
        for path, parameter in plain.named_parameters():
            layer = model.get_submodule(path.rpartition(".")[0])
            if isinstance(layer, PackedLinear):
                parameter.copy_(kernels.unpack(layer.packed))
    kept = set()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.add(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        found = gradients(model)
    matrices = {shape for shape in weight_shapes(model.params).values() if len(shape) == 2}
    assert not kept & (matrices | {shape[::-1] for shape in matrices})
    for one, other in zip(found, gradients(plain), strict=True):
        assert difference(one, other) < 0.02


@pytest.mark.parametrize("name", [None, "bfloat16", "int4"])
def test_training_leaves_the_base_as_it_was_bit_for_bit(name: str | None) -> None:
    model = model_of() if name is None else model_of().bfloat16()
    if name:
        use_format(model, name)
    tensors = {path: t for path, t in model.named_parameters()}
    for path, module in model.named_modules():
        if isinstance(module, PackedLinear):
            tensors |= {f"{path}.data": module.packed[0], f"{path}.scales": module.packed[1]}
    before = {path: tensor.detach().clone() for path, tensor in tensors.items()}
    add_lora(model, LoraConfig(r=4, targets=TARGETS))
    optimizer = torch.optim.AdamW(lora_parameters(model), lr=0.02, weight_decay=0.1)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            output = model(TOKENS[:, :-1])
        loss = F.cross_entropy(output.flatten(0, 1), TOKENS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for path, tensor in tensors.items():
        assert torch.equal(tensor, before[path]), path
        assert tensor.grad is None


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"targets": ("wq", "q_proj")}, ValueError, r"name 'q_proj'; possible are wq.* w3, output"),
        ({"targets": "wq"}, TypeError, "targets='wq' should be some of"),
        ({"targets": ()}, TypeError, "should be some of"),
        ({"r": 0}, ValueError, "r=0 should be a whole number of 1 or more"),
        ({"r": 2.5}, ValueError, r"r=2\.5 should be a whole number"),
        ({"alpha": 0}, ValueError, "alpha=0 should be greater than 0"),
        ({"alpha": math.inf}, ValueError, "alpha=inf should be greater than 0"),
    ],
)
def test_settings_that_are_refused(config: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LoraConfig(**config)


def test_a_second_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adapter to save"):
        save_adapter(model_of(), tmp_path)
    model = adapted(model_of())
    save_adapter(model, tmp_path)
    for again in (lambda: add_lora(model, LoraConfig()), lambda: load_adapter(model, tmp_path)):
        with pytest.raises(ValueError, match="has an adapter already"):
            again()


# ---------------------------------------------------------------- ranks

SHAPE = dict(dim=128, n_layers=2, n_heads=8, n_kv_heads=2, vocab_size=64, multiple_of=128)


def load_part(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    lengths = {"max_batch_size": 2, "max_seq_len": 32}
    return load(folder, device=CPU, dtype=dtype, trainable=True, **lengths)


def on_ranks(root: Path, of_tiny: Path) -> dict[str, Any]:
    """Logits and gradients of an adapter, its first values, and what is saved and built of it."""
    model = load_part(root / "meta")
    add_lora(model, LoraConfig(r=4, alpha=8, targets=TARGETS))
    first = [p.detach().clone() for p in lora_parameters(model)]
    size = distributed.model_parallel_size()
    save_adapter(model, root / f"first on {size}")
    load = load_part(root / "meta")
    load_adapter(load, root / "trained")
    names = [name for name, p in load.named_parameters() if p.requires_grad]
    found = {"first": first, "logits": logits(load)}
    found["gradients"] = dict(zip(names, gradients(load), strict=True))
    save_adapter(load, root / f"again on {size}")
    packed = load_part(root / "meta", torch.bfloat16)  # plain layers, to be packed
    use_format(packed, "int8")
    load_adapter(packed, root / "trained", torch.bfloat16)
    found["int8"] = logits(packed)
    cache = packed.new_cache(2, 32)
    with torch.no_grad():
        parts = [packed(TOKENS[:, i : i + 1], i, cache=cache) for i in range(5)]
    found["decoded"] = torch.cat(parts, 1)
    llama = build(of_tiny)
    prompts = [llama.tokenizer.encode(start, bos=True) for start in STARTS[:2]]
    found["tokens"] = llama.generate(prompts, 20, temperature=0)[0]
    one_head = load_part(root / "one head")
    load_adapter(one_head, root / "of one head")
    found["one head"], found["refused"] = logits(one_head), None
    save_adapter(one_head, root / f"one head on {size}")
    try:
        add_lora(load_part(root / "one head"), LoraConfig())
    except ValueError as error:
        found["refused"] = str(error)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """meta/, a checkpoint, and trained/, an adapter of all its layers; the same of one KV head."""
    root = tmp_path_factory.mktemp("ranks")
    one_head = {**SHAPE, "n_kv_heads": 1}
    for name, shape, adapter in (
        ("meta", SHAPE, "trained"),
        ("one head", one_head, "of one head"),
    ):
        write_shards(root / name, model_of(**shape).state_dict(), {**shape, "norm_eps": 1e-5})
        save_adapter(adapted(load_part(root / name)), root / adapter, base=name)
    return root


@pytest.fixture(scope="module")
def alone(trained: Path, of_tiny: Path) -> dict[str, Any]:
    return on_ranks(trained, of_tiny)


@pytest.fixture(scope="module")
def of_two(trained: Path, of_tiny: Path) -> list[dict[str, Any]]:
    return run_ranks(2, on_ranks, trained, of_tiny)


def test_two_ranks_compute_and_learn_what_one_does(
    trained: Path, of_two: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    expected = logits(load_part(trained / "meta"))
    assert difference(alone["logits"], expected) > 0.1
    for rank, part in enumerate(of_two):
        assert difference(part["logits"], alone["logits"]) < 1e-5
        assert difference(part["int8"], alone["int8"]) < 0.02
        assert difference(part["decoded"], alone["decoded"]) < 0.02
        assert part["tokens"] == alone["tokens"]
        for name, whole in alone["gradients"].items():
            mine = part["gradients"][name]
            is_row = any(layer in name for layer in ("wo", "w2"))
            cut = {"lora_A": 1 if is_row else None, "lora_B": None if is_row else 0}
            dim = cut[name.rpartition(".")[2]]
            assert difference(mine, whole if dim is None else whole.chunk(2, dim)[rank]) < 1e-5
    for one, other, whole in zip(*(found["first"] for found in (*of_two, alone)), strict=True):
        cut = [d for d in (0, 1) if one.shape[d] != whole.shape[d]]
        expected = torch.cat((one, other), cut[0]) if cut else one
        assert torch.equal(expected, whole)
        assert cut or torch.equal(other, whole)
    for name in ("first", "again"):
        files = [trained / f"{name} on {size}" / FILE for size in (1, 2)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes() == (trained / "trained" / FILE).read_bytes()


def test_ranks_that_share_a_kv_head_infer_but_do_not_train(
    trained: Path, of_two: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    assert alone["refused"] is None
    for found in of_two:
        assert difference(found["one head"], alone["one head"]) < 1e-5
        assert found["refused"] == (
            "2 ranks share 1 KV head(s), which works for inference only; train an adapter on at "
            "most 1 rank(s)"
        )
    files = [trained / f"one head on {size}" / FILE for size in (1, 2)]
    assert files[0].read_bytes() == files[1].read_bytes()


# ---------------------------------------------------------------- adapter folders


@pytest.fixture(scope="module")
def hugging_face(trained: Path) -> Path:
    convert(str(trained / "meta"), str(trained / "hf"), to="hf", dtype="float32")
    return trained / "hf"


def theirs_with(hf: Path, folder: Path, scale: float) -> torch.Tensor:
    """The logits of transformers' model with scale * B A added to weights of its own names."""
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(hf, dtype=torch.float32)
    tensors = safetensors.load_file(folder / FILE)
    with torch.no_grad():
        for key in tensors:
            if key.endswith(".lora_A.weight"):
                module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                a, b = tensors[key], tensors[key.replace("lora_A", "lora_B")]
                model.get_submodule(module).weight += scale * b @ a
        return model(TOKENS).logits


@pytest.mark.parametrize("targets", [TARGETS, ("wq",), ("wk", "output")], ids=str)
def test_transformers_computes_the_same_with_an_adapter_of_ours(
    targets: tuple[str, ...], trained: Path, hugging_face: Path, tmp_path: Path
) -> None:
    model = adapted(load_part(trained / "meta"), targets=targets, r=4, alpha=6)
    save_adapter(model, tmp_path, base="some/model")
    found = logits(model)
    assert difference(found, theirs_with(hugging_face, tmp_path, 1.5)) < 1e-4
    names = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj", "output": "lm_head"}
    names |= {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    assert json.loads((tmp_path / CONFIG).read_text()) == {
        "base_model_name_or_path": "some/model",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 6,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": sorted(names[target] for target in targets),
        "task_type": "CAUSAL_LM",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, FILE]
    again = load_part(trained / "meta")
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), found)


def test_alpha_is_written_as_it_was_given(trained: Path, tmp_path: Path) -> None:
    model = load_part(trained / "meta")
    add_lora(model, LoraConfig(r=49, alpha=1, targets=("wq",)))  # 49 * (1 / 49) is less than 1
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["lora_alpha"] == 1


# As peft 0.21 writes it; what is null, false or empty stands for many keys more.
PEFT: dict[str, Any] = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": "some/model",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_alpha": 5,
    "lora_dropout": 0.1,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 2,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q_proj", "down_proj"],
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": False,
}
SIZES = {  # of SHAPE: inputs and outputs
    "self_attn.q_proj": (128, 128),
    "self_attn.k_proj": (128, 32),
    "mlp.down_proj": (384, 128),
    "lm_head": (128, 64),
}


def write_theirs(
    folder: Path, modules: list[str], change: Callable[[dict], object] = dict, **config: Any
) -> Path:
    """An adapter folder of those modules, without the project's own writer."""
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for module in modules:
        inputs, outputs = next(size for end, size in SIZES.items() if module.endswith(end))
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(2, inputs, generator=generator) / 4
        tensors[f"{key}.lora_B.weight"] = torch.randn(outputs, 2, generator=generator) / 4
    change(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.save_file(tensors, folder / FILE)
    (folder / CONFIG).write_text(json.dumps(PEFT | config))
    return folder


def of_layers(*ends: str, layers: tuple[int, ...] = (0, 1)) -> list[str]:
    return [f"model.layers.{i}.{end}" for i in layers for end in ends]


Q_AND_DOWN = of_layers("self_attn.q_proj", "mlp.down_proj")


@pytest.mark.parametrize(
    ("modules", "config", "scale"),
    [
        (Q_AND_DOWN, {}, 2.5),
        (Q_AND_DOWN, {"use_rslora": True}, 5 / math.sqrt(2)),
        (Q_AND_DOWN, {"lora_alpha": 0.5, "init_lora_weights": "gaussian"}, 0.25),
        (
            [*of_layers("self_attn.k_proj"), "lm_head"],
            {"target_modules": ["k_proj", "lm_head"]},
            2.5,
        ),
        (
            of_layers("self_attn.k_proj", layers=(1,)),
            {
                "target_modules": ["k_proj"],
                "layers_to_transform": [1],
                "layers_pattern": "layers",
            },
            2.5,
        ),
        (
            of_layers("self_attn.k_proj", layers=(0,)),
            {"target_modules": ["self_attn.k_proj"], "layers_to_transform": 0},
            2.5,
        ),
        (
            ["model.layers.1.self_attn.q_proj"],
            {"target_modules": r".*\.1\.self_attn\.q_proj"},
            2.5,
        ),
    ],
    ids=lambda value: None if callable(value) else str(value)[:60],
)
def test_an_adapter_of_theirs_computes_what_it_does_there(
    modules: list[str], config: dict, scale: float, trained: Path, hugging_face: Path, tmp_path
) -> None:
    write_theirs(tmp_path / "theirs", modules, **config)
    model = load_part(trained / "meta")
    load_adapter(model, tmp_path / "theirs")
    assert len(lora_parameters(model)) == 2 * len(modules)
    found = logits(model)
    expected = theirs_with(hugging_face, tmp_path / "theirs", scale)
    assert difference(found, expected) < 1e-4
    assert difference(found, logits(load_part(trained / "meta"))) > 0.01
    save_adapter(model, tmp_path / "ours")
    first, again = (safetensors.load_file(tmp_path / n / FILE) for n in ("theirs", "ours"))
    assert first.keys() == again.keys()
    assert all(torch.equal(again[key], first[key]) for key in first)
    written = json.loads((tmp_path / "ours" / CONFIG).read_text())
    assert written["lora_alpha"] == pytest.approx(2 * scale)
    if len(modules) == 1:
        assert written["target_modules"] == modules
    after = load_part(trained / "meta")
    load_adapter(after, tmp_path / "ours")
    assert difference(logits(after), found) < 1e-6


def test_other_files_that_peft_writes(trained: Path, tmp_path: Path) -> None:
    modules, config = ["lm_head"], {"target_modules": ["lm_head"]}
    plain = write_theirs(tmp_path / "plain", modules, **config)

    def with_base(tensors: dict) -> None:
        tensors["base_model.model.lm_head.base_layer.weight"] = torch.zeros(64, 128)

    folders = [plain, write_theirs(tmp_path / "with base", modules, with_base, **config)]
    folders.append(tmp_path / "torch")
    folders[-1].mkdir()
    shutil.copy(plain / CONFIG, folders[-1])
    torch.save(safetensors.load_file(plain / FILE), folders[-1] / "adapter_model.bin")
    found = []
    for folder in folders:
        model = load_part(trained / "meta")
        load_adapter(model, folder)
        found.append(logits(model))
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


def test_half_precision_on_disk_is_float32_in_training(trained: Path, tmp_path: Path) -> None:
    def halve(tensors: dict) -> None:
        for key in tensors:
            tensors[key] = tensors[key].bfloat16()

    write_theirs(tmp_path, Q_AND_DOWN, halve)
    model = load_part(trained / "meta")
    load_adapter(model, tmp_path)
    stored = safetensors.load_file(tmp_path / FILE)
    a = model.get_parameter("layers.1.feed_forward.w2.lora_A")
    assert a.dtype == torch.float32
    assert torch.equal(a, stored["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"])


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def put(key: str, value: torch.Tensor) -> Callable[[dict], object]:
    return lambda tensors: tensors.update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(f"{Q0}.lora_B.weight"),
            rf"lacks {Q0}\.lora_B\.weight, which does not fit",
        ),
        (put(f"{Q0}.lora_E.weight", torch.ones(1)), rf"holds {Q0}\.lora_E\.weight"),
        (
            put("base_model.model.model.layers.7.mlp.down_proj.lora_A.weight", torch.ones(2, 384)),
            r"holds .*layers\.7.* and a model of 2 layers; it was made for some/model",
        ),
        (
            put("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", torch.ones(2, 128)),
            r"holds .*up_proj",
        ),
        (
            put(f"{Q0}.lora_A.weight", torch.ones(2, 32)),
            rf"{Q0}\.lora_A\.weight in .*{FILE} has shape \(2, 32\), but r=2 and the model ask for "
            r"\(2, 128\); it was made for some/model",
        ),
        (put(f"{Q0}.lora_A.weight", torch.ones(3, 128)), r"\(3, 128\), but r=2 .* \(2, 128\)"),
        (put(f"{Q0}.lora_B.weight", torch.ones(128, 3)), r"\(128, 3\), but r=2 .* \(128, 2\)"),
        (
            put(f"{Q0}.base_layer.weight", torch.ones(130, 128)),
            r"base_layer.* has shape \(130, 128\), .* \(128, 128\)",
        ),
        (
            put(f"{Q0}.lora_B.weight", torch.full((128, 2), math.nan)),
            rf"{Q0}\.lora_B\.weight in .* not finite",
        ),
        (dict.clear, r"lacks "),
    ],
    ids=lambda value: None if callable(value) else str(value)[:40],
)
def test_tensors_that_do_not_fit_are_named(change, message: str, tmp_path: Path) -> None:
    write_theirs(tmp_path, Q_AND_DOWN, change)
    with pytest.raises(ValueError, match=message):
        open_adapter(tmp_path, ModelArgs(**SHAPE))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "has peft_type='IA3'; only LORA can be read"),
        ({"use_dora": True}, "has use_dora=True, which is not computed here; merge it"),
        ({"bias": "all"}, "has bias='all'"),
        ({"lora_bias": True}, "has lora_bias=True"),
        ({"modules_to_save": ["lm_head"]}, r"has modules_to_save=\['lm_head'\]"),
        ({"rank_pattern": {"q_proj": 3}}, "has rank_pattern="),
        ({"alpha_pattern": {"q_proj": 3}}, "has alpha_pattern="),
        ({"fan_in_fan_out": True}, "has fan_in_fan_out=True"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights='pissa'"),
        ({"layers_pattern": "blocks"}, "has layers_pattern='blocks'"),
        ({"invented": 1}, "has invented=1, which is not computed"),
        ({"r": 0}, "r is 0, not a whole number"),
        ({"r": True}, "r is True, not a whole number"),
        ({"r": None}, "r is None, not a whole number"),
        ({"lora_alpha": "5"}, "lora_alpha is '5', not a number"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan, not a number"),
        ({"target_modules": None}, "target_modules is None, not a list of names"),
        ({"target_modules": [1]}, r"target_modules is \[1\], not a list of names"),
        ({"target_modules": ["c_attn"]}, "holds .* which does not fit"),
        ({"target_modules": ["q_proj", "down_proj", "k_proj"]}, "lacks .*k_proj"),
        ({"layers_to_transform": [1]}, r"holds .*layers\.0"),
    ],
    ids=str,
)
def test_configs_that_are_refused(config: dict, message: str, tmp_path: Path) -> None:
    write_theirs(tmp_path, Q_AND_DOWN, **config)
    with pytest.raises(ValueError, match=message):
        open_adapter(tmp_path, ModelArgs(**SHAPE))


def test_a_pattern_without_a_layer_is_refused(tmp_path: Path) -> None:
    write_theirs(tmp_path, [], target_modules=".*")
    with pytest.raises(ValueError, match="adapts nothing"):
        open_adapter(tmp_path, ModelArgs(**SHAPE))


def test_a_folder_that_is_no_adapter(trained: Path, tmp_path: Path) -> None:
    args = ModelArgs(**SHAPE)
    message = (
        r"no adapter in .*meta \(it holds consolidated\.00\.pth, params\.json\); give a folder"
    )
    with pytest.raises(FileNotFoundError, match=message):
        open_adapter(trained / "meta", args)
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        open_adapter(tmp_path / "nowhere", args)
    write_theirs(tmp_path, Q_AND_DOWN)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match="no adapter in"):
        open_adapter(tmp_path, args)
    (tmp_path / CONFIG).write_text("[]")
    with pytest.raises(ValueError, match="should contain a JSON object"):
        open_adapter(tmp_path, args)
    (tmp_path / CONFIG).write_text(json.dumps(PEFT))
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"{FILE}.* was cut off"):
        open_adapter(tmp_path, args)


def test_an_adapter_that_can_not_be_written_leaves_the_one_before(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter(adapted(load_part(trained / "meta"), r=2), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in (CONFIG, FILE)}
    other = adapted(load_part(trained / "meta"), r=3)

    def full(self: Any, stream: Any, written: Any) -> None:
        stream.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files.Entry, "write", full)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(other, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    monkeypatch.undo()
    save_adapter(other, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(before)
    load_adapter(load_part(trained / "meta"), tmp_path)


# ---------------------------------------------------------------- Llama.build


@pytest.mark.parametrize("kernel", ["native", "off"])
@pytest.mark.parametrize(
    ("quantize", "dtype", "most"),
    [
        (None, "float32", 1e-5),
        (None, "bfloat16", 0.02),
        ("int8", "bfloat16", 0.03),
        ("int4", "bfloat16", 0.03),
    ],
)
def test_a_model_is_built_with_its_adapter(
    quantize: str | None, dtype: str, most: float, kernel: str, of_tiny: Path, monkeypatch
) -> None:
    if kernel == "off":
        use_kernels("off", monkeypatch)
    exact = load(TINY, device=CPU, dtype=torch.float32)
    plain = logits(exact)
    load_adapter(exact, of_tiny)
    llama = build(of_tiny, quantize, dtype)
    with torch.no_grad():
        for name, layer in llama.model.named_modules():
            if isinstance(layer, PackedLinear):
                rounded = kernels.unpack(layer.matrix, torch.float32)
                exact.get_submodule(name).weight.copy_(rounded)
    expected = logits(exact)
    assert {p.dtype for p in lora_parameters(llama.model)} == {llama.model.norm.weight.dtype}
    # Native kernels take inputs by 32, and a rank that is no multiple one by one.
    assert len(lora_parameters(llama.model)[0]) == (5 if dtype == "float32" else 32)
    assert difference(plain, expected) > 0.2
    assert difference(logits(llama.model), expected) < most
    cache = llama.model.new_cache(2, 32)
    with torch.no_grad():
        decoded = [llama.model(TOKENS[:, i : i + 1], i, cache=cache) for i in range(20)]
    assert difference(torch.cat(decoded, 1), expected) < most


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_an_answer_does_not_depend_on_the_batch(quantize: str | None, of_tiny: Path) -> None:
    llama = build(of_tiny, quantize, "bfloat16")
    prompts = [llama.tokenizer.encode(start, bos=True) for start in STARTS]
    together = llama.generate(prompts, 40, temperature=0, logprobs=True)
    assert together[1] is not None
    for i, prompt in enumerate(prompts):
        alone = llama.generate([prompt], 40, temperature=0, logprobs=True)
        assert alone[0][0] == together[0][i]
        assert alone[1] == [together[1][i]]


def test_a_wrong_adapter_is_told_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "llama.checkpoint.loading._read_model", lambda *_, **__: pytest.fail("loaded")
    )
    write_theirs(tmp_path, Q_AND_DOWN)
    with pytest.raises(ValueError, match=r"lacks base_model\.model\.model\.layers\.2"):
        build(tmp_path)


# ---------------------------------------------------------------- llama merge


def of_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    whole = {n: tuple(slice(0, s) for s in w.shape) for n, w in checkpoint.weights.items()}
    return {n: w.read(whole[n], CPU, w.dtype) for n, w in checkpoint.weights.items()}


@pytest.mark.parametrize("block", [1, 3000, 2**26])
@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_merged_is_what_apart_computes(
    layout: str, block: int, trained: Path, hugging_face: Path, tmp_path: Path, monkeypatch
) -> None:
    apart = load_part(trained / "meta")
    load_adapter(apart, trained / "trained")
    monkeypatch.setattr(weights_module, "_BLOCK", block)
    base = {name: weight.clone() for name, weight in of_checkpoint(trained / layout).items()}
    merge(str(trained / layout), str(trained / "trained"), str(tmp_path / "new"))
    checkpoint = open_checkpoint(tmp_path / "new")
    assert checkpoint.layout == layout
    assert difference(logits(load_part(tmp_path / "new")), logits(apart)) < 1e-5
    expected = merged_by_hand(apart).state_dict()
    for name, weight in of_checkpoint(tmp_path / "new").items():
        assert weight.dtype == torch.float32
        assert difference(weight, expected[name]) < 1e-6
    for name, weight in of_checkpoint(trained / layout).items():
        assert torch.equal(weight, base[name])


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_sums_are_made_in_float32_and_stored_in_a_dtype(
    dtype: str | None, of_tiny: Path, tmp_path: Path
) -> None:
    merge(str(TINY), str(of_tiny), str(tmp_path / "new"), dtype=dtype)
    model = load(TINY, device=CPU, dtype=torch.float32)
    load_adapter(model, of_tiny)
    wanted = distributed.DTYPES[dtype or "bfloat16"]
    by_hand = merged_by_hand(model).state_dict()
    found = of_checkpoint(tmp_path / "new")
    for name, weight in found.items():
        assert weight.dtype == wanted
        off = (weight.float() - by_hand[name]).abs()
        assert (off <= by_hand[name].abs() * torch.finfo(wanted).eps / 2 * 1.01 + 1e-6).all(), name
    if dtype == "float32":
        assert difference(logits(load_part(tmp_path / "new")), logits(model)) < 1e-4
    # An adapted output layer is the embedding no more, which stays.
    assert open_checkpoint(TINY).tied
    assert not open_checkpoint(tmp_path / "new").tied
    embedding = of_checkpoint(TINY)["tok_embeddings.weight"].to(wanted)
    assert torch.equal(found["tok_embeddings.weight"], embedding)
    assert (tmp_path / "new" / "tokenizer.model").read_bytes() == (
        TINY / "tokenizer.model"
    ).read_bytes()


def test_a_tied_model_stays_tied_and_converts_further(tmp_path: Path) -> None:
    model = load(TINY, device=CPU, dtype=torch.float32)
    save_adapter(adapted(model, targets=("wq", "wv")), tmp_path / "adapter")
    convert(str(TINY), str(tmp_path / "hf"), to="hf")
    for base in (TINY, tmp_path / "hf"):
        target = tmp_path / f"merged {base.name}"
        merge(str(base), str(tmp_path / "adapter"), str(target))
        assert open_checkpoint(target).tied
    convert(str(tmp_path / "merged tiny"), str(tmp_path / "int4"), quantize="int4")
    packed = Llama.build(tmp_path / "int4", device="cpu").model
    assert difference(logits(packed), logits(model)) < 0.2


def test_as_many_shards_as_before(trained: Path, tmp_path: Path) -> None:
    convert(str(trained / "meta"), str(tmp_path / "two"), to="meta", shards=2)
    merge(str(tmp_path / "two"), str(trained / "trained"), str(tmp_path / "new"))
    assert len(open_checkpoint(tmp_path / "new").files) == 2
    merge(str(trained / "meta"), str(trained / "trained"), str(tmp_path / "one"))
    one, two = of_checkpoint(tmp_path / "one"), of_checkpoint(tmp_path / "new")
    for name, weight in one.items():
        assert difference(two[name], weight) < 1e-6


def test_what_merge_refuses(of_tiny: Path, trained: Path, tmp_path: Path) -> None:
    convert(str(TINY), str(tmp_path / "int8"), quantize="int8")
    with pytest.raises(
        ValueError, match=r"int8 has int8 weights, which can.t be changed: merge into"
    ):
        merge(str(tmp_path / "int8"), str(of_tiny), str(tmp_path / "new"))
    with pytest.raises(FileExistsError, match="tiny already exists"):
        merge(str(TINY), str(of_tiny), str(TINY))
    with pytest.raises(ValueError, match=r"lacks|holds"):
        merge(str(TINY), str(trained / "trained"), str(tmp_path / "new"))
    with pytest.raises(ValueError, match="dtype 'int8' is none of"):
        merge(str(TINY), str(of_tiny), str(tmp_path / "new"), dtype="int8")
    big = write_theirs(tmp_path / "big", Q_AND_DOWN, lambda t: t[f"{Q0}.lora_B.weight"].fill_(1e6))
    message = r"layers\.0\.attention\.wq\.weight would have values that torch\.float16 can't hold"
    with pytest.raises(ValueError, match=message):
        merge(str(trained / "meta"), str(big), str(tmp_path / "new"), dtype="float16")
    assert {path.name for path in tmp_path.iterdir()} == {"int8", "big"}


def test_the_command(of_tiny: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    arguments = ["merge", str(TINY), str(of_tiny), str(tmp_path / "8"), "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", ["llama", *arguments])
    cli.main()
    size = 4 * sum(weight.numel() for weight in of_checkpoint(tmp_path / "8").values())
    expected = f"{tmp_path / '8'}: 1 file(s) of weights, {size / 1e6:.1f} MB\n"
    assert capsys.readouterr().out == expected
