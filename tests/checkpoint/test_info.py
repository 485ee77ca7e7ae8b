import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fixtures import run_ranks, tiny_args, write_sentencepiece, write_tiktoken

from llama import Tokenizer, Transformer, distributed
from llama.args import ModelArgs
from llama.cache import Int8KVCache
from llama.checkpoint import info as module
from llama.checkpoint import memory
from llama.checkpoint.convert import convert
from llama.checkpoint.info import info, read_facts, short_count
from llama.checkpoint.memory import (
    Facts,
    Place,
    best_setting,
    int8_cache,
    need,
    this_machine,
    verdict,
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


def cpu(gigabytes: float, dtype: str = "bfloat16") -> Place:
    return Place("the memory", gigabytes * 1e9, dtype)


def gpus(count: int, gigabytes: float) -> Place:
    return Place("the GPUs", gigabytes * 1e9, "bfloat16", count)


@pytest.fixture
def machine(monkeypatch):
    """Sets what the machine is taken to have."""
    return lambda *places: monkeypatch.setattr(module, "this_machine", lambda _: list(places))


@pytest.fixture
def said(capsys):
    """What `info` prints, with its arguments."""

    def call(*args, **kwargs) -> str:
        info(*args, **kwargs)
        return capsys.readouterr().out

    return call


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
    assert facts.family == family
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
        ({"n_layers": 31}, "Llama-shaped"),
        ({"vocab_size": 128264}, "Llama-shaped"),
        ({"multiple_of": 4096}, "Llama-shaped"),
        ({"rope_theta": 1e6}, "Llama-shaped"),
        ({"rope_scaling_factor": 16.0}, "Llama-shaped"),
    ):
        (tmp_path / "params.json").write_text(json.dumps({**stated, **changes}))
        assert read_facts(str(tmp_path)).family == family, changes


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
    parts = model.new_cache(4, 32).parts
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
    assert found.both == 51_267_928_064 + 8_455_716_864


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


# ---------------------------------------------------------------- the verdict
# Llama 3 8B in bfloat16: 16,060,522,496 bytes of weights, 131,072 of KV cache for a position.


def test_fits() -> None:
    (line,) = verdict(released("Meta-Llama-3-8B"), [cpu(25)], 1, 8192)
    # 1.1 * (16,060,522,496 + 8192 * 131,072) + 0.5e9
    assert line == "Fits the memory of 25.0 GB: it takes 19.3 GB in bfloat16 on 1 rank."


def test_the_edge_between_fitting_and_not() -> None:
    facts = released("Meta-Llama-3-8B")
    edge = 1.1 * (16_060_522_496 + 8192 * 131_072) / 1e9 + 0.5
    found = [best_setting(facts, cpu(edge + more), 1, 8192) for more in (-1e-3, 1e-3)]
    assert [setting and setting.context for setting in found] == [8192 - 256, 8192]


def test_fits_with_a_shorter_context() -> None:
    place = cpu(24)
    found = best_setting(released("Llama-3.1-8B"), place, 1, 131072)
    assert found is not None
    # (23.5e9 / 1.1 - 16,060,522,496) / 131,072 = 40,457.9, of which whole 256s
    assert (found.dtype, found.ranks, found.context) == ("bfloat16", 1, 40448)
    assert found.need.with_room <= place.memory < found.need.with_room + 256 * 1.1 * 131_072
    no, how = verdict(released("Llama-3.1-8B"), [place], 1, 131072)
    assert no == "Does not fit the memory of 24.0 GB: it takes 37.1 GB in bfloat16 on 1 rank."
    assert how == "With max_seq_len=40448 it fits: 24.0 GB in bfloat16 on 1 rank."


def test_fits_in_another_dtype() -> None:
    lines = verdict(released("Meta-Llama-3-8B"), [cpu(25, "float32")], 1, 4096)
    assert lines == [
        "Does not fit the memory of 25.0 GB: it takes 37.0 GB in float32 on 1 rank.",
        "With dtype=bfloat16 it fits: 18.8 GB in bfloat16 on 1 rank.",
    ]


def test_the_usual_dtype_is_taken_where_it_fits() -> None:
    for dtype in ("float32", "float16", "bfloat16"):
        (line,) = verdict(released("Meta-Llama-3-8B"), [cpu(64, dtype)], 1, 4096)
        assert f" in {dtype} on 1 rank." in line


def test_a_context_that_was_asked_for_may_be_as_short_as_one_likes() -> None:
    (line,) = verdict(released("Meta-Llama-3-8B"), [cpu(19)], 1, 100)
    assert line.startswith("Fits")


def test_fits_with_fewer_prompts() -> None:
    *_, how = verdict(released("Meta-Llama-3-8B"), [cpu(19)], 64, 1024)
    assert how.startswith("With max_batch_size=1 it fits: 18.3 GB")
    *_, how = verdict(released("Meta-Llama-3-8B"), [cpu(25)], 64, 1024)
    assert how.startswith("With max_seq_len=512 it fits: ")


def test_gpus_take_no_more_ranks_than_needed() -> None:
    facts = released("Llama-3.3-70B-Instruct")
    for count, gigabytes, ranks in ((8, 141, 2), (8, 80, 4), (3, 141, 2), (8, 204, 1)):
        found = best_setting(facts, gpus(count, gigabytes), 1, 131072)
        assert found is not None
        assert (found.ranks, found.context, found.dtype) == (ranks, 131072, "bfloat16")
    (line,) = verdict(facts, [gpus(8, 80)], 1, 131072)
    assert line == (
        "Fits the GPUs of 80.0 GB each: it takes 51.1 GB in bfloat16 on each of 4 ranks."
    )
    line, *_ = verdict(facts, [gpus(5, 24)], 1, 131072)
    assert line == (
        "Does not fit the GPUs of 24.0 GB each: it takes 51.1 GB in bfloat16 on each of 4 ranks."
    )


def test_each_place_has_its_verdict() -> None:
    lines = verdict(released("Llama-3.1-8B"), [gpus(1, 24), cpu(64)], 1, 131072)
    assert [line.partition(" ")[0] for line in lines] == ["Does", "With", "Fits"]


def test_nothing_fits() -> None:
    facts = released("Llama-3.1-405B")
    no, elsewhere = verdict(facts, [cpu(25)], 1, 131072)
    assert no == "Does not fit the memory of 25.0 GB: it takes 967.8 GB in bfloat16 on 1 rank."
    assert elsewhere == "It fits 16 GPUs of 80 GB: 66.2 GB in bfloat16 on each of 16 ranks."
    *_, small = verdict(released("Meta-Llama-3-8B"), [cpu(8)], 1, 8192)
    assert small == "It fits a GPU of 24 GB: 19.3 GB in bfloat16 on 1 rank."
    assert len(verdict(facts, [cpu(25), gpus(2, 24)], 64, 131072)) == 2


def main_memory(gigabytes: float, dtype: str = "bfloat16") -> Place:
    return Place("the memory", gigabytes * 1e9, dtype, is_cpu=True)


def test_packed_weights_are_proposed_where_others_do_not_fit() -> None:
    facts = released("Meta-Llama-3-8B")
    lines = verdict(facts, [main_memory(12)], 1, 8192)
    assert lines == [
        "Does not fit the memory of 12.0 GB: it takes 19.3 GB in bfloat16 on 1 rank.",
        # 1.1 * (2 * 525,602,816 + 7,504,658,432 * 17 / 16 + 8192 * 131,072) + 0.5 GB
        "With quantize=int8 it fits: 11.6 GB in int8 on 1 rank.",
    ]
    assert verdict(facts, [main_memory(10)], 1, 8192)[1:] == [
        "With quantize=int4 it fits: 7.8 GB in int4 on 1 rank."
    ]
    shorter, packed = verdict(facts, [main_memory(19)], 1, 8192)[1:]
    assert shorter.startswith("With max_seq_len=")
    assert shorter.endswith("in bfloat16 on 1 rank.")
    assert packed == "With quantize=int8 it fits: 11.6 GB in int8 on 1 rank."
    short = verdict(facts, [main_memory(7)], 1, 8192)[1]
    assert re.fullmatch(r"With quantize=int4 and max_seq_len=\d+ it fits: \S+ GB in int4 .*", short)
    assert "a GPU of 24 GB" in verdict(facts, [main_memory(6)], 1, 8192)[1]


def test_packed_weights_on_a_gpu_take_a_scale_and_an_offset() -> None:
    facts, gpu = released("Meta-Llama-3-8B"), Place("a GPU", 12e9, "bfloat16", is_cuda=True)
    # 1.1 * (2 * 525,602,816 + 525,336,576 * 10 / 8 + 6,979,321,856 * 5 / 8 + 8192 * 131,072) + 0.5
    assert verdict(facts, [gpu], 1, 8192)[1:] == [
        "With quantize=int4 it fits: 8.4 GB in int4 on 1 rank."
    ]
    (line,) = verdict(replace(facts, quantize="int4"), [gpu], 1, 8192)
    assert line == "Fits a GPU of 12.0 GB: it takes 8.4 GB in int4 on 1 rank."


def test_packed_weights_are_not_proposed_where_another_dtype_is_enough() -> None:
    lines = verdict(released("Meta-Llama-3-8B"), [main_memory(25, "float32")], 1, 4096)
    assert lines[1:] == ["With dtype=bfloat16 it fits: 18.8 GB in bfloat16 on 1 rank."]
    (line,) = verdict(released("Meta-Llama-3-8B"), [main_memory(25)], 1, 4096)
    assert line.startswith("Fits")


def test_packed_weights_are_not_proposed_for_layers_that_are_no_tiles() -> None:
    args = ModelArgs(dim=4080, n_layers=32, n_heads=30, vocab_size=32000, max_seq_len=1024)
    facts = Facts("odd", "params.json", {}, args, False)
    assert facts.misfit(1) is None
    assert facts.misfit(1, "int4") is not None
    assert "quantize" not in "".join(verdict(facts, [main_memory(8)], 1, 1024))


@pytest.mark.parametrize(("quantize", "weights"), [("int8", "6.0 MB"), ("int4", "3.9 MB")])
def test_packed_weights_on_disk(quantize: str, weights: str, said, machine, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    convert(str(PARAMS / "tiny"), str(folder), quantize=quantize)
    machine(gpus(1, 24), main_memory(25))
    text = said(str(folder)).rpartition("packed: ")[2]
    size = (folder / "consolidated.00.pth").stat().st_size / 1e6
    assert f"weights     {quantize} in 1 shard, {size:.1f} MB, in Meta's layout\n" in text
    assert re.search(rf"^  {quantize} +weights +{weights} ", text, re.M)
    no = f"Not on the GPUs of 24.0 GB: {quantize} weights need a CPU or an NVIDIA GPU, Ampere or"
    assert f"{no} newer.\n" in text
    assert re.search(
        rf"^Fits the memory of 25.0 GB: it takes \S+ MB in {quantize} on 1", text, re.M
    )
    assert "bfloat16" not in text
    assert "quantize=" not in text
    facts = read_facts(str(folder))
    assert facts.checkpoint is not None
    stored = sum(tensor.nbytes for tensor in facts.checkpoint.files[0].tensors.values())
    assert need(facts, quantize, 1, 1, 1024).weights == stored
    (folder / "consolidated.00.pth").unlink()
    assert f"none here, only params.json, for {quantize} weights\n" in said(str(folder))


def test_packed_weights_that_do_not_fit(tmp_path: Path) -> None:
    params = json.loads((PARAMS / "Meta-Llama-3-8B" / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps({**params, "quantize": "int4"}))
    facts = read_facts(str(tmp_path))
    no, how = verdict(facts, [main_memory(7)], 1, 8192)
    assert no == "Does not fit the memory of 7.0 GB: it takes 7.8 GB in int4 on 1 rank."
    assert re.fullmatch(r"With max_seq_len=\d+ it fits: \S+ GB in int4 on 1 rank.", how)
    assert len(verdict(facts, [main_memory(4)], 1, 8192)) == 1
    (tmp_path / "params.json").write_text(json.dumps({**params, "quantize": "int3"}))
    with pytest.raises(ValueError, match=r"params.json: quantize is 'int3', which is none of"):
        read_facts(str(tmp_path))


# ---------------------------------------------------------------- this machine


def test_memory_is_what_the_container_may_have(tmp_path: Path) -> None:
    whole = memory._main_memory(str(tmp_path))
    assert whole > 10**8
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._main_memory(str(tmp_path)) == whole
    (tmp_path / "memory.max").write_text("123000000\n")
    assert memory._main_memory(str(tmp_path)) == 123_000_000
    (tmp_path / "memory.max").write_text(f"{10**18}\n")
    assert memory._main_memory(str(tmp_path)) == whole


def test_a_machine_without_gpus(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    (place,) = this_machine(10**9)
    assert (place.name, place.dtype) == ("this machine's main memory", "bfloat16")
    assert (place.memory, place.devices) == (memory._main_memory(), 1)


def test_a_machine_with_gpus(monkeypatch) -> None:
    found = [SimpleNamespace(name="Big", total_memory=80e9, major=9, minor=0)] * 3
    found[1] = SimpleNamespace(name="Small", total_memory=40e9, major=8, minor=6)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: found[i])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(distributed, "select_device", lambda *_: pytest.fail("not needed"))
    first, *_, last = this_machine(10**9)
    assert first == ("this machine's 3 GPUs (Small)", 40e9, "float16", 3, False, True)
    assert last.name == "this machine's main memory"
    assert last.is_cpu
    found[2] = SimpleNamespace(name="Old", total_memory=80e9, major=7, minor=5)
    assert not this_machine(10**9)[0].is_cuda


def test_an_apple_machine(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12_000_000_000)
    first, _ = this_machine(10**9)
    assert first == ("this machine's Apple GPU", 12_000_000_000, "bfloat16", 1, False, False)


# ---------------------------------------------------------------- what is read and told


def test_the_bundled_model(said, machine) -> None:
    machine(cpu(25))
    text = said(str(PARAMS / "tiny"))
    for part in (
        "tiny: Llama-shaped, 4.66M parameters\n",
        "parameters  4,656,384, embedding and output in one\n",
        "layers      6 of dim 256, feed-forward 640\n",
        "heads       8 of size 32, 4 for keys and values\n",
        "vocabulary  2,048 tokens\n",
        "rotary      theta 500,000, not scaled\n",
        "context     1,024 positions\n",
        "weights     bfloat16 in 1 shard, 9.3 MB, in Meta's layout\n",
        "tokenizer   tokenizer.model, tiktoken, 2,048 tokens\n",
        "Not on 16 ranks: n_heads (8) is not divisible by the number of ranks (16).\n",
        "Fits the memory of 25.0 GB: it takes 513.7 MB in bfloat16 on 1 rank.\n",
    ):
        assert part in text
    columns = re.search(r"^  ranks +(.*)$", text, re.M)
    assert columns is not None
    assert columns[1].split() == ["1", "2", "4", "8"]
    assert "8192" not in text


@pytest.mark.parametrize("name", RELEASED)
def test_what_is_told_fits_a_screen(name: str, said, machine) -> None:
    machine(cpu(25), gpus(8, 80))
    text = said(str(PARAMS / name))
    assert text.startswith(f"{name}: {RELEASED[name][4]}, {RELEASED[name][1]} parameters\n")
    lines = text.splitlines()
    assert len(lines) <= 36
    assert max(map(len, lines)) <= 100


def test_what_params_json_leaves_out_is_said_to_be_assumed(said) -> None:
    text = said(str(PARAMS / "Llama-3.2-1B"))
    assert "embedding and output in one (Llama 3.2's: params.json does not say)" in text
    assert "scaling factor 32 (by the shape: params.json has only use_scaled_rope)" in text
    assert "131,072 positions (its generation's: params.json does not say)" in text
    assert "weights     none here, only params.json\n" in text
    assert "tokenizer   none here\n" in text
    text = said(str(PARAMS / "Llama-3.1-8B"))
    assert "in one" not in text
    assert "scaling factor 8 (Llama 3.1's: params.json has only use_scaled_rope)" in text
    text = said(str(PARAMS / "Llama-2-7b"))
    assert "vocabulary  32,000 tokens (Llama 2's: params.json says -1)" in text


def test_long_contexts_are_told_with_a_short_one_beside_them(said) -> None:
    path = str(PARAMS / "Llama-3.2-1B")
    at_8192 = "  2.7 GB "  # (1,235,814,400 + 2 * 16 * 8 * 64 * 8192) * 2 bytes = 2.74 GB
    assert at_8192 in next(row for row in said(path).splitlines() if "at max_seq_len=8192" in row)
    two = next(row for row in said(path, 2).splitlines() if "at max_seq_len=8192" in row)
    assert "  3.0 GB " in two  # 0.27 GB more
    short = said(path, max_seq_len=8192)
    assert "  at max_seq_len=8192" not in short
    both = next(row for row in short.splitlines() if row.strip().startswith("both"))
    assert at_8192 in both
    assert "max_seq_len=200000 (more than it was trained on)" in said(path, max_seq_len=200000)
    assert "trained on" not in said(path, max_seq_len=131072)


def test_the_batch_counts(said, machine) -> None:
    machine(cpu(25))
    assert "it takes 12.7 GB" in said(str(PARAMS / "Llama-3.2-1B"), 2)  # 1.1 * (2.47 + 8.59) + 0.5


def test_the_path_of_a_file_is_enough(said) -> None:
    facts = read_facts(str(PARAMS / "tiny" / "params.json"))
    assert (facts.name, facts.checkpoint, facts.tied) == ("tiny", None, False)
    assert facts.parameters() == 4_656_384 + 2048 * 256  # the file does not tell that it is tied
    assert "tokenizer   none here" in said(str(PARAMS / "tiny" / "params.json"))


def test_a_relative_path_has_a_name(monkeypatch) -> None:
    monkeypatch.chdir(PARAMS / "Llama-2-7b")
    assert read_facts(".").name == read_facts("params.json").name == "Llama-2-7b"


def test_a_lone_config_json(tmp_path: Path, said) -> None:
    for name, tied in (("Llama-3.2-1B", True), ("Llama-3.1-8B", False)):
        config = config_of(released(name).args, tied)
        (tmp_path / "config.json").write_text(json.dumps(config))
        for path in (tmp_path, tmp_path / "config.json"):
            facts = read_facts(str(path))
            assert (facts.name, facts.tied, facts.checkpoint) == (tmp_path.name, tied, None)
            assert (facts.parameters(), facts.family) == (RELEASED[name][0], RELEASED[name][4])
        text = said(str(tmp_path))
        factor = RELEASED[name][3]
        assert f"theta 500,000, scaling factor {factor} (as config.json says)\n" in text
        assert "context     131,072 positions\n" in text
        assert "does not say" not in text
        assert "weights     none here, only config.json\n" in text
    del config["max_position_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "2,048 positions (transformers' default: config.json does not say)" in said(
        str(tmp_path)
    )


def test_a_checkpoint_of_hugging_face(tmp_path: Path, said) -> None:
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
    text = said(str(tmp_path))
    size = sum((tmp_path / file).stat().st_size for file in files) / 1e6
    assert f"float32 and float16 in 2 files, {size:.1f} MB, in Hugging Face's layout\n" in text
    assert f"parameters  {sum(w.numel() for w in weights.values()):,}\n" in text
    assert "tokenizer   none here" in text
    # With weights missing, what the config alone says is not enough.
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors is not there"):
        read_facts(str(tmp_path))


def test_a_vocabulary_that_only_the_weights_know(tmp_path: Path, said) -> None:
    tokenizer = Tokenizer(write_sentencepiece(tmp_path / "tokenizer.model"))
    size = tokenizer.n_words
    save_model(
        Transformer(tiny_args(vocab_size=size)), tmp_path, tokenizer.model_path, torch.float32
    )
    stated = json.loads((tmp_path / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps({**stated, "vocab_size": -1}))
    text = said(str(tmp_path))
    assert f"vocabulary  {size} tokens (seen in the weights: params.json says -1)\n" in text
    assert f"tokenizer   tokenizer.model, SentencePiece, {size} tokens\n" in text


def test_a_tokenizer_that_does_not_fit_is_told(checkpoint: Path, tmp_path: Path, said) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert "cannot be used" not in said(str(tmp_path))
    other = tmp_path / "tokenizer.model"
    other.unlink()
    write_tiktoken(other, [b"ab"])
    size = read_facts(str(tmp_path)).args.vocab_size
    expected = f"cannot be used: .*vocab_size {size}, but .*tokenizer.model has 513 tokens"
    assert re.search(expected, said(str(tmp_path)))
    other.write_text("<html>")
    assert re.search("cannot be used: .*tokenizer.model is a web page", said(str(tmp_path)))


def test_a_tokenizer_beside_a_lone_file(tmp_path: Path, said) -> None:
    write_tiktoken(tmp_path / "tokenizer.model", [])
    for size, end in ((512, "512 tokens\n"), (511, "512 tokens, more than the model has\n")):
        shape = {"dim": 8, "n_layers": 1, "n_heads": 1, "vocab_size": size}
        (tmp_path / "params.json").write_text(json.dumps(shape))
        assert f"tokenizer   tokenizer.model, tiktoken, {end}" in said(str(tmp_path))


@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True])
@pytest.mark.parametrize("name", ["max_batch_size", "max_seq_len"])
def test_sizes_are_whole_numbers_above_zero(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value!r} should be"):
        info(str(PARAMS / "tiny"), **{name: value})


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


def test_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llama", "info", PARAMS / "Llama-3.1-405B", "--max_seq_len", "100"],
        capture_output=True,
        text=True,
        cwd=PARAMS.parent,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "max_batch_size=1, max_seq_len=100" in done.stdout
