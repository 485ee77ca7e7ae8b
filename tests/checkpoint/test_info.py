import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fixtures import run_ranks, tiny_args, write_sentencepiece, write_tiktoken

from llama import Tokenizer, Transformer, distributed
from llama.args import ModelArgs
from llama.cache import Int8KVCache
from llama.checkpoint import info as info_module
from llama.checkpoint.convert import convert
from llama.checkpoint.info import (
    Device,
    Facts,
    fit,
    info,
    int8_cache,
    need,
    packed_weights,
    read_facts,
    short_count,
    this_machine,
)
from llama.checkpoint.saving import save_model
from llama.storage import huggingface_names
from llama.storage.tensor_files import Entry, write_tensors

PARAMS = Path(__file__).parents[2] / "params"
# Parameters as published with the weights, context, rotary factor, family.
RELEASED = {
    "Llama-2-7b": (6_738_415_616, "6.74B", 4096, None, "Llama 2"),
    "Llama-2-13b": (13_015_864_320, "13.0B", 4096, None, "Llama 2"),
    "Llama-2-70b": (68_976_648_192, "69.0B", 4096, None, "Llama 2"),
    "Meta-Llama-3-8B": (8_030_261_248, "8.03B", 8192, None, "Llama 3"),
    "Meta-Llama-3-70B": (70_553_706_496, "70.6B", 8192, None, "Llama 3"),
    "Llama-3.1-8B": (8_030_261_248, "8.03B", 131072, 8, "Llama 3.1"),
    "Llama-3.1-70B": (70_553_706_496, "70.6B", 131072, 8, "Llama 3.1 or 3.3"),
    "Llama-3.1-405B": (405_853_388_800, "405.9B", 131072, 8, "Llama 3.1"),
    "Llama-3.2-1B": (1_235_814_400, "1.24B", 131072, 32, "Llama 3.2"),
    "Llama-3.2-3B": (3_212_749_824, "3.21B", 131072, 32, "Llama 3.2"),
    "Llama-3.3-70B-Instruct": (70_553_706_496, "70.6B", 131072, 8, "Llama 3.1 or 3.3"),
}


def facts_of(args: ModelArgs, tied: bool = False) -> Facts:
    return Facts("model", "params.json", {}, args, tied)


def released(name: str) -> Facts:
    return read_facts(str(PARAMS / name))


def config_of(args: ModelArgs, tied: bool) -> dict:
    """Its `config.json`, as transformers writes it."""
    scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}
    scaling |= {"original_max_position_embeddings": 8192, "factor": args.rope_scaling_factor}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": args.dim,
        "intermediate_size": args.hidden_dim,
        "num_hidden_layers": args.n_layers,
        "num_attention_heads": args.n_heads,
        "num_key_value_heads": args.kv_heads,
        "vocab_size": args.vocab_size,
        "max_position_embeddings": args.max_seq_len,
        "rope_theta": args.rope_theta,
        "rope_scaling": scaling if args.use_scaled_rope else None,
        "tie_word_embeddings": tied,
    }


def cpu(gigabytes: float) -> Device:
    return Device("CPU", gigabytes * 1e9, "bfloat16", is_cpu=True)


def gpus(count: int, gigabytes: float, is_cuda: bool = False) -> Device:
    return Device("GPUs", gigabytes * 1e9, "bfloat16", count, is_cuda=is_cuda)


@pytest.fixture
def machine(monkeypatch):
    """Sets the devices that this machine has."""
    return lambda *all: monkeypatch.setattr(info_module, "this_machine", lambda _: list(all))


@pytest.fixture
def shown(capsys):
    """What `info` prints, with its arguments."""

    def call(*args, **kwargs) -> str:
        info(*args, **kwargs)
        return capsys.readouterr().out

    return call


def cells(text: str, label: str) -> list[str]:
    """A row of the table."""
    (row,) = (line for line in text.splitlines() if line.startswith(f"  {label}  "))
    return re.split(r" {2,}", row.strip())[1:]


# ---------------------------------------------------------------- the released models


def test_params_has_the_released_models_and_the_bundled_one() -> None:
    folders = {path.name for path in PARAMS.iterdir() if path.is_dir()}
    assert folders == {*RELEASED, "tiny"}


@pytest.mark.parametrize("name", RELEASED)
def test_released_models(name: str) -> None:
    facts = released(name)
    parameters, short, context, factor, family = RELEASED[name]
    assert facts.name == name
    assert (facts.parameters(), short_count(facts.parameters())) == (parameters, short)
    assert facts.args.max_seq_len == context
    assert (facts.args.rope_scaling_factor if facts.args.use_scaled_rope else None) == factor
    assert info_module._family(facts.args) == family
    # Meta's package takes the context as an argument and refuses a file that states it.
    assert not any(key.startswith("max_") for key in facts.stated)


@pytest.mark.parametrize("name", RELEASED)
def test_the_table_of_released_models_is_right(name: str) -> None:
    table = (PARAMS / "README.md").read_text()
    (row,) = (line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
    parameters, _, context, factor, _ = RELEASED[name]
    args = released(name).args
    assert row.split(" | ")[1:-1] == [
        f"{parameters:,}",
        str(args.n_layers),
        str(args.dim),
        f"{args.n_heads} / {args.kv_heads}",
        str(args.hidden_dim),
        f"{context:,}",
        str(factor or "none").lower(),
    ]


def test_another_shape_or_rotary_is_no_released_model(tmp_path: Path) -> None:
    stated = released("Llama-3.1-8B").stated
    for changes, family in (
        ({}, "Llama 3.1"),
        ({"n_layers": 31}, None),
        ({"vocab_size": 128264}, None),
        ({"multiple_of": 4096}, None),
        ({"rope_theta": 1e6}, None),
        ({"rope_scaling_factor": 16.0}, None),
    ):
        (tmp_path / "params.json").write_text(json.dumps({**stated, **changes}))
        assert info_module._family(read_facts(str(tmp_path)).args) == family, changes


def test_numbers_of_parameters_in_short() -> None:
    texts = {
        1_000_000: "1.00M",
        15_190_000: "15.2M",
        999_499_999: "999.5M",
        999_500_000: "1.00B",
        9_994_999_999: "9.99B",
        9_995_000_000: "10.0B",
        99_960_000_000: "100.0B",
    }
    assert {count: short_count(count) for count in texts} == texts


# ---------------------------------------------------------------- what a rank needs


def bytes_built(args: ModelArgs, ranks: int) -> tuple[int, int]:
    """What a rank's model and KV cache really take, in float32."""
    distributed.initialize(ranks)
    model = Transformer(args)
    cache = model.new_cache(args.max_batch_size, args.max_seq_len)
    return sum(w.nbytes for w in model.state_dict().values()), cache.k.nbytes + cache.v.nbytes


@pytest.mark.parametrize("changes", [{}, {"head_dim": 16, "n_layers": 3, "vocab_size": 100}])
def test_one_rank_needs_what_a_model_takes(changes: dict) -> None:
    args = tiny_args(**changes)
    assert need(facts_of(args), "float32", 1, 4, 32) == bytes_built(args, 1)


def test_a_cache_in_int8_needs_what_it_takes() -> None:
    args, facts = tiny_args(), facts_of(tiny_args())
    distributed.initialize(1)
    model = Transformer(args)
    model.cache_type = Int8KVCache
    parts = model.new_cache(4, 32).tensors
    assert int8_cache(facts, 1, 4, 32) == sum(part.nbytes for part in parts)
    plain = need(released("Llama-3.1-8B"), "bfloat16", 2, 1, 8192).cache
    assert int8_cache(released("Llama-3.1-8B"), 2, 1, 8192) == plain * (128 + 4) / (128 * 2)


def test_more_ranks_than_kv_heads_need_what_a_model_takes() -> None:
    args = tiny_args(n_kv_heads=2)
    expected = need(facts_of(args), "float32", 4, 4, 32)
    assert run_ranks(4, bytes_built, args, 4) == [expected] * 4
    # 2 layers, batch 4, one head of 8, 32 positions of 4 bytes, keys and values
    assert (
        expected.cache
        == 2 * 2 * 4 * 1 * 8 * 32 * 4
        == need(facts_of(args), "float32", 2, 4, 32).cache
    )


def test_a_405b_on_16_ranks() -> None:
    """A layer has 16384 times: 1024 of wq and wo, 128 of wk and wv, 3328 of w1 to w3, 2 norms."""
    found = need(released("Llama-3.1-405B"), "bfloat16", 16, 1, 131072)
    layer = 1024 + 1024 + 128 + 128 + 3 * 3328 + 2
    assert found.weights == 2 * 16384 * (126 * layer + 8016 + 8016 + 1)
    assert found.cache == 2 * 126 * 128 * 131072 * 2
    assert found == (51_267_928_064, 8_455_716_864)
    assert found.total == int(1.1 * sum(found) + 0.5e9)


def test_a_tied_output_layer_counts_once_on_each_rank() -> None:
    args = tiny_args()
    tied, untied = facts_of(args, tied=True), facts_of(args)
    assert untied.parameters() - tied.parameters() == 64 * 32
    assert untied.parameters(2) - tied.parameters(2) == 32 * 32


def test_formats() -> None:
    facts = released("Llama-3.2-1B")
    half, full = (need(facts, dtype, 1, 2, 1000) for dtype in ("bfloat16", "float32"))
    assert half == need(facts, "float16", 1, 2, 1000)
    assert half == (2 * 1_235_814_400, 2 * 16 * 2 * 8 * 64 * 1000 * 2)
    assert full == (2 * half.weights, 2 * half.cache)


# ---------------------------------------------------------------- whether it fits
# Llama 3 8B in bfloat16: 16,060,522,496 bytes of weights, 131,072 of KV cache for a position.


def fits(name: str, device: Device, context: int, dtype: str = "bfloat16", batch: int = 1) -> str:
    return fit(released(name), device, dtype, [1, 2, 4, 8, 16], batch, context)


def test_the_edge_between_fitting_and_not() -> None:
    edge = 1.1 * (16_060_522_496 + 8192 * 131_072) / 1e9 + 0.5
    found = [fits("Meta-Llama-3-8B", cpu(edge + more), 8192) for more in (-1e-3, 1e-3)]
    assert found == ["7,936 tokens", "yes"]


def test_a_shorter_context_fits() -> None:
    # (23.5e9 / 1.1 - 16,060,522,496) / 131,072 = 40,457.9, in whole 256s
    assert fits("Llama-3.1-8B", cpu(24), 131072) == "40,448 tokens"
    assert fits("Llama-3.1-8B", cpu(24), 131072, batch=4) == "9,984 tokens"
    assert fits("Llama-3.1-8B", cpu(18.2), 131072) == "no"
    assert fits("Llama-3.1-8B", cpu(18.2), 100) == "yes"


@pytest.mark.parametrize(
    ("count", "gigabytes", "found"),
    [
        (8, 141, "on 2 ranks"),
        (8, 80, "on 4 ranks"),
        (3, 141, "on 2 ranks"),
        (8, 204, "yes"),
        (5, 45, "62,976 tokens on 4 ranks"),
        (1, 24, "no"),
    ],
)
def test_the_fewest_gpus(count: int, gigabytes: float, found: str) -> None:
    assert fits("Llama-3.3-70B-Instruct", gpus(count, gigabytes), 131072) == found


def test_packed_weights_run_on_some_devices_and_in_whole_tiles() -> None:
    assert fits("Meta-Llama-3-8B", cpu(8), 8192, "int4") == "yes"
    assert fits("Meta-Llama-3-8B", gpus(1, 8.4, is_cuda=True), 8192, "int4") == "yes"
    assert fits("Meta-Llama-3-8B", gpus(1, 80), 8192, "int4") == "-"
    odd = facts_of(ModelArgs(dim=4080, n_layers=32, n_heads=30, vocab_size=32000))
    assert odd.misfit(1) is None
    assert fit(odd, cpu(80), "int4", [1], 1, 1024) == "-"
    assert fit(odd, cpu(80), "bfloat16", [1], 1, 1024) == "yes"


def test_ranks_on_a_cpu_share_its_memory() -> None:
    facts = released("Meta-Llama-3-8B")
    assert fit(facts, cpu(19.5), "bfloat16", [1], 1, 8192) == "yes"
    assert fit(facts, cpu(19.5), "bfloat16", [2], 1, 8192) != "yes"
    assert fit(facts, cpu(20.5), "bfloat16", [2], 1, 8192) == "yes"


def test_packed_weights_on_a_gpu_have_more_scales() -> None:
    """5 and 10 bits a weight, in the layout of torch's kernel; the output layer has 10."""
    facts = released("Meta-Llama-3-8B")
    linear = facts.parameters() - 2 * 128256 * 4096 - 65 * 4096
    others = 128256 * 4096 * 2 + 65 * 4096 * 2
    output = 128256 * 4096 * 10 // 8
    assert packed_weights(facts, "int4", 1, is_cuda=True) == linear * 5 // 8 + output + others
    assert packed_weights(facts, "int8", 1, is_cuda=True) == linear * 10 // 8 + output + others


@pytest.mark.parametrize(("quantize", "weights"), [("int8", "8.2 MB"), ("int4", "5.1 MB")])
def test_packed_weights_on_disk(
    quantize: str, weights: str, shown, machine, tmp_path: Path
) -> None:
    folder = tmp_path / "packed"
    convert(str(PARAMS / "tiny"), str(folder), quantize=quantize)
    machine(gpus(1, 24), cpu(25))
    text = shown(str(folder)).rpartition("packed: ")[2]
    assert text.startswith("Llama-shaped, 6.72M or 7.25M parameters\n")
    size = (folder / "consolidated.00.pth").stat().st_size / 1e6
    assert f"weights     {quantize}, {size:.1f} MB in 1 file, Meta's layout\n" in text
    assert cells(text, quantize) == [weights, "4.7 MB", *cells(text, quantize)[2:3], "-", "yes"]
    assert not re.search("^  (bfloat16|float32)", text, re.M)
    facts = read_facts(str(folder))
    assert facts.checkpoint is not None
    stored = sum(tensor.nbytes for tensor in facts.checkpoint.files[0].tensors.values())
    assert need(facts, quantize, 1, 1, 1024).weights == stored
    (folder / "consolidated.00.pth").unlink()
    (folder / "checksums.sha256").unlink()
    assert f"none here; {quantize} expected\n" in shown(str(folder))


def test_an_unknown_format(tmp_path: Path) -> None:
    params = json.loads((PARAMS / "Meta-Llama-3-8B" / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps({**params, "quantize": "int3"}))
    with pytest.raises(ValueError, match=r"params.json: quantize is 'int3', which is none of"):
        read_facts(str(tmp_path))


# ---------------------------------------------------------------- this machine


def test_a_machine_without_gpus(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    (only,) = this_machine(10**9)
    assert only == ("CPU", distributed.main_memory(), "bfloat16", 1, True, False)


def test_a_machine_with_gpus(monkeypatch) -> None:
    found = [SimpleNamespace(name="Big", total_memory=80e9, major=9, minor=0)] * 3
    found[1] = SimpleNamespace(name="Small", total_memory=40e9, major=8, minor=6)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: found[i])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(distributed, "select_device", lambda *_: pytest.fail("not needed"))
    first, *_, last = this_machine(10**9)
    assert first == ("3 GPUs", 40e9, "float16", 3, False, True)
    assert last.is_cpu
    found[2] = SimpleNamespace(name="Old", total_memory=80e9, major=7, minor=5)
    assert not this_machine(10**9)[0].is_cuda


def test_an_apple_machine(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12_000_000_000)
    first, _ = this_machine(10**9)
    assert first == ("Apple GPU", 12_000_000_000, "bfloat16", 1, False, False)


# ---------------------------------------------------------------- what is printed


def test_the_bundled_model(shown, machine) -> None:
    machine(cpu(25))
    assert (
        shown(str(PARAMS / "tiny"))
        == """\
tiny: Llama-shaped, 6.72M parameters

  parameters  6,722,304, output layer tied to the embedding
  layers      9 of dim 256, feed-forward 640
  heads       8 of size 32, 4 for keys and values
  vocabulary  2,048 tokens
  rotary      theta 500,000
  context     1,024 tokens
  weights     bfloat16, 13.5 MB in 1 file, Meta's layout
  tokenizer   tokenizer.model, tiktoken, 2,048 tokens

Memory of one process at max_batch_size=1, max_seq_len=1024;
the total has 10 % and 0.5 GB for activations and torch. Does it fit here?

                     weights  KV cache     total  CPU 25.0 GB
  float32            26.9 MB    9.4 MB  540.0 MB          yes
  bfloat16, float16  13.4 MB    4.7 MB  520.0 MB          yes
  bf12               10.5 MB    4.7 MB  516.8 MB          yes
  int8                8.2 MB    4.7 MB  514.2 MB          yes
  int4                5.1 MB    4.7 MB  510.8 MB          yes

KV cache of one token: 4,608 bytes; 2,592 with kv_cache_dtype=int8.
Llama.build takes bfloat16 here by default.
Ranks that can share it: 1, 2, 4, 8 (see --ranks).
"""
    )


@pytest.mark.parametrize("name", RELEASED)
def test_the_report_fits_a_terminal(name: str, shown, machine) -> None:
    machine(gpus(8, 80), cpu(25))
    text = shown(str(PARAMS / name))
    assert text.startswith(f"{name}: {RELEASED[name][4]}, {RELEASED[name][1]} parameters\n")
    lines = text.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_what_params_json_leaves_out_is_marked(shown) -> None:
    text = shown(str(PARAMS / "Llama-3.2-1B"))
    assert "1,235,814,400, output layer tied to the embedding\n" in text
    assert "scaling factor 32 (by shape; not in params.json)" in text
    assert "131,072 tokens (as trained; not in params.json)" in text
    assert "weights     none here\n" in text
    assert "tokenizer   none here\n" in text
    text = shown(str(PARAMS / "Llama-3.1-8B"))
    assert "tied" not in text
    assert "scaling factor 8 (by shape; not in params.json)" in text
    text = shown(str(PARAMS / "Llama-2-7b"))
    assert "vocabulary  32,000 tokens (Llama 2; not in params.json)" in text


def test_batch_context_and_ranks_count(shown, machine) -> None:
    machine(gpus(8, 80))
    path = str(PARAMS / "Llama-3.2-1B")
    text = shown(path, max_seq_len=8192)  # (2 * 16 * 8 * 64 * 8192) * 2 bytes = 0.27 GB
    assert cells(text, "bfloat16, float16") == ["2.5 GB", "268.4 MB", "3.5 GB", "yes"]
    text = shown(path, max_batch_size=2)
    assert cells(text, "bfloat16, float16") == ["2.5 GB", "8.6 GB", "12.7 GB", "yes"]
    text = shown(path, max_batch_size=2, ranks=2)
    assert "Memory of each of 2 ranks at" in text
    assert cells(text, "bfloat16, float16") == ["1.2 GB", "4.3 GB", "6.6 GB", "yes"]
    assert "max_seq_len=200000 (beyond the model's context)" in shown(path, max_seq_len=200000)
    with pytest.raises(ValueError, match=r"--ranks 3: n_heads \(32\) is not divisible"):
        info(path, ranks=3)


def test_json(shown, machine) -> None:
    machine(cpu(25))
    found = json.loads(shown(str(PARAMS / "tiny"), as_json=True))
    assert (found["parameters"], found["tied"], found["ranks"]) == (6_722_304, True, [1, 2, 4, 8])
    assert found["memory"][1] == {
        "format": "bfloat16, float16",
        "weights": 13_444_608,
        "kv_cache": 4_718_592,
        "total": 519_979_520,
        "fits": {"CPU": "yes"},
    }


def test_the_path_of_a_file_is_enough(shown) -> None:
    """A params.json does not say whether the output layer is tied, unless it is a released one."""
    facts = read_facts(str(PARAMS / "tiny" / "params.json"))
    assert (facts.name, facts.checkpoint, facts.tied) == ("tiny", None, None)
    text = shown(str(PARAMS / "tiny" / "params.json"))
    assert text.startswith("tiny: Llama-shaped, 6.72M or 7.25M parameters\n")
    assert "6,722,304 if the output layer is the embedding, else 7,246,592\n" in text
    assert "tokenizer   none here" in text


def test_a_relative_path_has_a_name(monkeypatch) -> None:
    monkeypatch.chdir(PARAMS / "Llama-2-7b")
    assert read_facts(".").name == read_facts("params.json").name == "Llama-2-7b"


def test_a_lone_config_json(tmp_path: Path, shown) -> None:
    for name, tied in (("Llama-3.2-1B", True), ("Llama-3.1-8B", False)):
        config = config_of(released(name).args, tied)
        (tmp_path / "config.json").write_text(json.dumps(config))
        for path in (tmp_path, tmp_path / "config.json"):
            facts = read_facts(str(path))
            assert (facts.name, facts.tied, facts.checkpoint) == (tmp_path.name, tied, None)
            assert facts.parameters() == RELEASED[name][0]
        text = shown(str(tmp_path))
        factor = RELEASED[name][3]
        assert f"theta 500,000, scaling factor {factor}\n" in text
        assert "context     131,072 tokens\n" in text
        assert "not in" not in text
        assert "weights     none here\n" in text
    del config["max_position_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "2,048 tokens (default; not in config.json)" in shown(str(tmp_path))


def test_a_checkpoint_of_hugging_face(tmp_path: Path, shown) -> None:
    args = tiny_args(max_seq_len=48, vocab_size=4096)  # half a MB for the embedding
    config = config_of(args, tied=False)
    weights = Transformer(args).state_dict()
    files: dict[str, dict[str, Entry]] = {"a.safetensors": {}, "b.safetensors": {}}
    index = {}
    for i, (name, weight) in enumerate(weights.items()):
        file = list(files)[i > 0]
        dtype = torch.float16 if name == "norm.weight" else torch.float32
        index[huggingface_names.weight_name(name)] = file
        files[file][huggingface_names.weight_name(name)] = Entry(
            dtype, tuple(weight.shape), lambda w=weight, d=dtype: [w.to(d)]
        )
    for file, entries in files.items():
        write_tensors(tmp_path / file, entries)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    text = shown(str(tmp_path))
    size = sum((tmp_path / file).stat().st_size for file in files) / 1e6
    assert f"float32 and float16, {size:.1f} MB in 2 files, Hugging Face's layout\n" in text
    assert f"parameters  {sum(w.numel() for w in weights.values()):,}\n" in text
    assert "tokenizer   none here" in text
    # With weights missing, what the config alone says is not enough.
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors is not there"):
        read_facts(str(tmp_path))


def test_a_vocabulary_that_only_the_weights_know(tmp_path: Path, shown) -> None:
    tokenizer = Tokenizer(write_sentencepiece(tmp_path / "tokenizer.model"))
    size = tokenizer.n_words
    save_model(
        Transformer(tiny_args(vocab_size=size)), tmp_path, tokenizer.model_path, torch.float32
    )
    stated = json.loads((tmp_path / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps({**stated, "vocab_size": -1}))
    text = shown(str(tmp_path))
    assert f"vocabulary  {size} tokens (from the weights; not in params.json)\n" in text
    assert f"tokenizer   tokenizer.model, SentencePiece, {size} tokens\n" in text


def test_a_tokenizer_that_does_not_fit_is_reported(checkpoint: Path, tmp_path: Path, shown) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert "unusable" not in shown(str(tmp_path))
    other = tmp_path / "tokenizer.model"
    other.unlink()
    write_tiktoken(other, [b"ab"])
    size = read_facts(str(tmp_path)).args.vocab_size
    expected = f"unusable: .*vocab_size {size}, but .*tokenizer.model has 513 tokens"
    assert re.search(expected, shown(str(tmp_path)))
    other.write_text("<html>")
    assert re.search("unusable: .*tokenizer.model is a web page", shown(str(tmp_path)))


def test_a_tokenizer_beside_a_lone_file(tmp_path: Path, shown) -> None:
    write_tiktoken(tmp_path / "tokenizer.model", [])
    for size, end in ((512, "512 tokens\n"), (511, "512 tokens, more than the model has\n")):
        shape = {"dim": 8, "n_layers": 1, "n_heads": 1, "vocab_size": size}
        (tmp_path / "params.json").write_text(json.dumps(shape))
        assert f"tokenizer   tokenizer.model, tiktoken, {end}" in shown(str(tmp_path))


def test_wrong_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no checkpoint in {tmp_path}"):
        info(str(tmp_path))
    for name in ("nowhere", "nowhere/params.json"):
        with pytest.raises(FileNotFoundError, match=rf"{name} is not there"):
            info(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=r"consolidated\.00\.pth is a file"):
        info(str(PARAMS / "tiny" / "consolidated.00.pth"))
    with pytest.raises(FileNotFoundError, match="no checkpoint in /"):
        info("/")
    (tmp_path / "other.json").write_text('{"dimension": 1}')
    with pytest.raises(ValueError, match=r"other\.json has unknown key\(s\) dimension"):
        info(str(tmp_path / "other.json"))
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ValueError, match=r"config\.json has .*mamba"):
        info(str(tmp_path))


def test_the_command(run_command) -> None:
    code, out, err = run_command("info", PARAMS / "Llama-3.1-405B", "--max_seq_len", "100")
    assert (code, err) == (0, "")
    assert "max_batch_size=1, max_seq_len=100;" in out
    for flag in ("--max-seq-len", "--max-batch-size", "--ranks"):
        for value in ("0", "-1", "2.5", "8x", "true"):
            code, out, err = run_command("info", PARAMS / "tiny", f"{flag}={value}")
            assert (code, out) == (2, ""), (flag, value)
            assert flag in err
