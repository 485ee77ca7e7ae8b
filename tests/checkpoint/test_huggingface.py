"""Folders that transformers wrote, and configs that ask for more than a Llama."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import is_mapped, write_tiktoken

from llama import Llama, Tokenizer
from llama.checkpoint.convert import convert
from llama.checkpoint.huggingface_config import read_config, write_config
from llama.checkpoint.loading import load
from llama.checkpoint.opening import open_checkpoint
from llama.model import ModelArgs
from llama.storage.huggingface_names import rows_from_meta, rows_to_meta, weight_name

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
SHAPE = dict(
    hidden_size=48, intermediate_size=100, num_hidden_layers=2, num_attention_heads=6, vocab_size=97
)


def llama3(factor: float = 8.0, low: float = 1.0, high: float = 4.0, context: int = 64) -> dict:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }


MODELS: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "grouped": {"num_key_value_heads": 2},
    "one KV head, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "tied, several files": {"tie_word_embeddings": True, "files": "60KB"},
    "grouped, several files": {"num_key_value_heads": 3, "files": "40KB"},
    "llama3 scaling": {"rope_scaling": llama3(), "rope_theta": 500000.0},
    "other scaling": {"rope_scaling": llama3(32.0, 0.5, 6.0, 32), "num_key_value_heads": 2},
    "scaled, tied, grouped, several files": {
        "rope_scaling": llama3(context=16),
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "files": "40KB",
    },
    "head_dim 12": {"head_dim": 12},
    "head_dim 10, grouped, scaled": {
        "head_dim": 10,
        "num_key_value_heads": 2,
        "intermediate_size": 77,
        "rms_norm_eps": 1e-5,
        "rope_scaling": llama3(),
    },
}


def write_model(folder: Path, files: str = "5GB", dtype: str = "float32", **changes: Any) -> Any:
    """A random model with clear preferences, saved by transformers, which returns it."""
    config = transformers.LlamaConfig(**{**SHAPE, **changes})
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn(weight.shape)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=files)
    return model


def change_config(folder: Path, name: str = "config.json", **changes: Any) -> None:
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_wrote_computes_the_same(name: str, tmp_path: Path) -> None:
    theirs = write_model(tmp_path, **MODELS[name])
    assert len(list(tmp_path.glob("*.safetensors"))) > (1 if "several" in name else 0)
    ours = load(tmp_path, device=CPU, dtype=torch.float32)
    tokens = torch.randint(97, (2, 70), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = theirs(tokens).logits, ours(tokens)
        ours(tokens[:, :40], 0)
        ends = ours(tokens[:, 40:], 40)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert (ends - expected[:, 40:]).norm() < 1e-4 * expected[:, 40:].norm()
    tied = ours.output.weight.data_ptr() == ours.tok_embeddings.weight.data_ptr()
    assert tied == ("tied" in name)
    meta, again = tmp_path / "meta", tmp_path / "again"
    convert(str(tmp_path), str(meta), to="meta")
    convert(str(meta), str(again), to="hf", shards=2)
    from_ours, problems = transformers.LlamaForCausalLM.from_pretrained(
        again, output_loading_info=True
    )
    assert not any(problems.values()), problems
    with torch.no_grad():
        assert torch.equal(from_ours(tokens).logits, expected)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's table of mappings")
def test_only_rotary_rows_are_copied(tmp_path: Path) -> None:
    write_model(tmp_path)
    model = load(tmp_path, device=CPU, dtype=torch.float32)
    for name, weight in model.state_dict().items():
        copied = not is_mapped(weight, tmp_path / "model.safetensors")
        assert copied == name.endswith(("wq.weight", "wk.weight")), name


def test_a_config_of_transformers_4_says_the_same(tmp_path: Path) -> None:
    write_model(tmp_path, rope_scaling=llama3(), rope_theta=500000.0)
    new = open_checkpoint(tmp_path).args
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"], config["dtype"], config["head_dim"]
    old = {"rope_theta": 500000.0, "rope_scaling": llama3(), "torch_dtype": "float32"}
    assert read_config({**config, **old}, "config.json") == (new, False)
    del old["rope_scaling"]["rope_type"]
    old["rope_scaling"]["type"] = "llama3"
    assert read_config({**config, **old}, "config.json") == (new, False)
    args, _ = read_config({**config, "rope_scaling": None}, "config.json")
    assert (args.rope_theta, args.use_scaled_rope) == (10000.0, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"use_qk_norm": True}, "use_qk_norm=True"),
        ({"num_local_experts": 8}, "num_local_experts=8"),
        ({"model_type": "mistral"}, "model_type='mistral'"),
        ({"architectures": ["MistralForCausalLM"]}, "architectures=['MistralForCausalLM']"),
        ({"architectures": 5}, "architectures=5"),
        ({"intermediate_size": 10**400}, "intermediate_size is 1000"),
        ({"num_hidden_layers": 2**40}, "n_layers=1099511627776 should be at most"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "only LlamaForCausalLM"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
        ({"rope_scaling": {**llama3(), "beta_fast": 3}}, "beta_fast"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor=0.5",
        ),
        ({"rope_scaling": llama3(low=4.0)}, "rope_low_freq_factor=4.0 should be less"),
        (
            {"rope_scaling": llama3(), "rope_parameters": llama3(32.0)},
            "rope_scaling and rope_parameters differ",
        ),
        ({"rope_scaling": "llama3"}, "rope_scaling is 'llama3'"),
        ({"hidden_size": "48"}, "hidden_size is '48'"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"num_attention_heads": 7}, "not divisible"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
        ({"rope_theta": "10000"}, "rope_theta is '10000'"),
        ({"intermediate_size": 0}, "intermediate_size is 0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    tmp_path: Path, change: dict, message: str
) -> None:
    config = transformers.LlamaConfig(**SHAPE, architectures=["LlamaForCausalLM"]).to_dict()
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        open_checkpoint(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "vocab_size"])
def test_a_config_without_its_shape(key: str) -> None:
    config = transformers.LlamaConfig(**SHAPE, architectures=["LlamaForCausalLM"]).to_dict()
    del config[key]
    with pytest.raises(ValueError, match=rf"somewhere lacks {key}"):
        read_config(config, "somewhere")


def test_what_changes_nothing_is_accepted() -> None:
    config = transformers.LlamaConfig(**SHAPE, architectures=["LlamaForCausalLM"]).to_dict()
    config["max_position_embeddings"] = 2048  # the default, for which null stands too
    more = {
        "max_position_embeddings": None,
        "pretraining_tp": 2,
        "sliding_window": None,
        "unsloth_version": "1",
        "use_cache": False,
    }
    assert read_config({**config, **more}, "") == read_config(config, "")


@pytest.mark.parametrize(
    "args",
    [
        ModelArgs(dim=64, n_layers=2, n_heads=4, vocab_size=97, max_seq_len=4096),
        ModelArgs(
            dim=64,
            n_layers=2,
            n_heads=4,
            n_kv_heads=2,
            head_dim=24,
            vocab_size=97,
            use_scaled_rope=True,
            rope_theta=500000.0,
            rope_scaling_factor=32.0,
            rope_low_freq_factor=0.5,
            norm_eps=1e-6,
            max_seq_len=131072,
        ),
        ModelArgs(dim=4096, n_heads=32, vocab_size=9, multiple_of=1024, ffn_dim_multiplier=1.3),
        ModelArgs(dim=2048, n_layers=16, vocab_size=9, multiple_of=256, ffn_dim_multiplier=1.5),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_a_config_that_we_write_says_what_it_was_made_from(args: ModelArgs, tied: bool) -> None:
    config = write_config(args, tied, torch.bfloat16)
    again, again_tied = read_config(json.loads(json.dumps(config)), "config.json")
    assert again_tied == tied
    # max_batch_size is ours; the hidden size shows what makes it.
    same = {"max_batch_size": 32, "multiple_of": 0, "ffn_dim_multiplier": 0.0}
    assert vars(again) | same == vars(args) | same
    assert again.hidden_dim == args.hidden_dim == config["intermediate_size"]


@pytest.mark.parametrize("hidden", [1, 77, 100, 5504, 11008, 14336, 28673, 53248])
@pytest.mark.parametrize("dim", [48, 2048, 4096, 8192])
def test_any_hidden_size_can_be_said_in_metas_words(dim: int, hidden: int) -> None:
    config = {**SHAPE, "hidden_size": dim, "head_dim": 8, "intermediate_size": hidden}
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    assert read_config(config, "")[0].hidden_dim == hidden


def test_the_order_of_rotary_rows() -> None:
    rows = torch.arange(16).unsqueeze(1)  # two heads of 8
    theirs = rows_from_meta(rows, 8).flatten().tolist()
    assert theirs[:8] == [0, 2, 4, 6, 1, 3, 5, 7]
    assert theirs[8:] == [8, 10, 12, 14, 9, 11, 13, 15]
    again = rows_to_meta(rows_from_meta(rows, 8).reshape(16, 1), 8)
    assert torch.equal(again.reshape(16, 1), rows)


def test_names_of_weights(tmp_path: Path) -> None:
    theirs = write_model(tmp_path)
    names = {weight_name(name) for name in open_checkpoint(tmp_path).weights}
    assert names == set(theirs.state_dict())


def test_stop_tokens_come_from_the_generation_config(tmp_path: Path) -> None:
    write_model(tmp_path, eos_token_id=5)
    assert open_checkpoint(tmp_path).stop_ids == {5}
    change_config(tmp_path, "generation_config.json", eos_token_id=[5, 7])
    assert open_checkpoint(tmp_path).stop_ids == {5, 7}
    (tmp_path / "generation_config.json").unlink()
    change_config(tmp_path, eos_token_id=8)
    assert open_checkpoint(tmp_path).stop_ids == {8}
    change_config(tmp_path, eos_token_id="</s>")
    with pytest.raises(ValueError, match=r"config.json: eos_token_id is '</s>'"):
        open_checkpoint(tmp_path)


def test_answers_end_at_those_stop_tokens_too(tmp_path: Path) -> None:
    words = Tokenizer(write_tiktoken(tmp_path / "tokenizer.model")).n_words
    write_model(tmp_path, vocab_size=words, eos_token_id=[5, 7])
    built = Llama.build(tmp_path, device="cpu")
    assert {5, 7, built.tokenizer.eos_id} < built.tokenizer.stop_tokens
    out = built.generate([[1, 2, 3]], 30, temperature=0, logit_bias={7: 1e4})
    assert (out[0], out.finish_reason) == ([[]], ["stop"])
    change_config(tmp_path, "generation_config.json", eos_token_id=words)
    with pytest.raises(ValueError, match=rf"end with token {words} \(eos_token_id\)"):
        Llama.build(tmp_path, device="cpu")


def test_an_output_layer_beside_a_tied_embedding_is_used(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_model(tmp_path, tie_word_embeddings=True)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    assert "lm_head.weight" not in weights
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"] * 2}, path)
    model = load(tmp_path, device=CPU, dtype=torch.float32)
    assert torch.equal(model.output.weight, 2 * model.tok_embeddings.weight)


def test_an_untied_model_needs_its_output_layer(tmp_path: Path) -> None:
    write_model(tmp_path, tie_word_embeddings=True)
    change_config(tmp_path, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"model.safetensors .*lacks 1 .*lm_head.weight"):
        open_checkpoint(tmp_path)


def test_bin_files_and_old_rotary_buffers(tmp_path: Path) -> None:
    theirs = write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    weights = theirs.state_dict()
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    torch.save({**weights, **buffer}, tmp_path / "pytorch_model.bin")
    tokens = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        expected = theirs(tokens).logits
        found = load(tmp_path, device=CPU, dtype=torch.float32)(tokens)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    half = len(weights) // 2
    weight_map = {key: names[i >= half] for i, key in enumerate(weights)}
    (tmp_path / "pytorch_model.bin").unlink()
    for name in names:
        torch.save({k: w for k, w in weights.items() if weight_map[k] == name}, tmp_path / name)
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with torch.no_grad():
        again = load(tmp_path, device=CPU, dtype=torch.float32)(tokens)
    assert torch.equal(found, again)
