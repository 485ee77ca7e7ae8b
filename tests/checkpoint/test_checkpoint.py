import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from fixtures import is_mapped, tiny_args, write_shards

from llama.cache import Int8KVCache
from llama.checkpoint.loading import load
from llama.checkpoint.meta_layout import read_params
from llama.checkpoint.opening import open_checkpoint
from llama.checkpoint.saving import save_model
from llama.lora import LoraConfig, add_lora, lora_parameters, save_adapter
from llama.model import ColumnParallelLinear, ModelArgs, Transformer, TransformerBlock
from llama.quantization.inference_block import InferenceBlock
from llama.storage import files

CPU = torch.device("cpu")


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "consolidated.00.pth"
    weights = torch.load(path)
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            del weights[key]
        else:
            weights[key] = value
    torch.save(weights, path)


def test_what_was_saved_is_loaded(tokenizer, tmp_path: Path) -> None:
    args = tiny_args(vocab_size=tokenizer.n_words, rope_theta=500000.0, use_scaled_rope=True)
    model = Transformer(args)
    save_model(model, tmp_path, tokenizer.model_path, torch.float32)
    loaded = load(tmp_path, device=CPU, dtype=torch.float32)
    for key, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], weight)
    assert loaded.params.max_seq_len == args.max_seq_len
    tokens = torch.randint(0, tokenizer.n_words, (2, 9))
    with torch.no_grad():
        assert torch.equal(loaded(tokens), model(tokens))


def test_params_json_keeps_to_metas_keys(checkpoint: Path) -> None:
    params = json.loads((checkpoint / "params.json").read_text())
    assert {"dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of"} <= set(params)
    assert not {"max_batch_size", "rope_scaling_factor", "use_scaled_rope"} & set(params)


def test_tied_weights_are_stored_once(tokenizer, tmp_path: Path) -> None:
    model = Transformer(tiny_args(vocab_size=tokenizer.n_words, dim=128))
    save_model(model, tmp_path / "untied", tokenizer.model_path, torch.bfloat16)
    model.output.weight = model.tok_embeddings.weight
    save_model(model, tmp_path / "tied", tokenizer.model_path, torch.bfloat16)
    sizes = [
        (tmp_path / name / "consolidated.00.pth").stat().st_size for name in ("untied", "tied")
    ]
    assert sizes[0] - sizes[1] > 0.9 * 2 * model.output.weight.numel()
    # As the trainer hands them over: cast, each a copy of its own.
    copies = {name: weight.bfloat16() for name, weight in model.state_dict().items()}
    save_model(model, tmp_path / "cast", tokenizer.model_path, torch.bfloat16, copies)
    cast = (tmp_path / "cast" / "consolidated.00.pth").stat().st_size
    assert abs(cast - sizes[1]) < 1000
    assert [open_checkpoint(tmp_path / name).tied for name in ("untied", "tied", "cast")] == [
        False,
        True,
        True,
    ]
    loaded = load(tmp_path / "tied", device=CPU, dtype=torch.bfloat16)
    assert torch.equal(loaded.output.weight, loaded.tok_embeddings.weight)


def test_params_json_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, read_bytes = [], files.read_bytes
    monkeypatch.setattr(files, "read_bytes", lambda path: read.append(path) or read_bytes(path))
    load(folder, device=CPU, dtype=torch.float32)
    assert read == [str(folder / "params.json")]


def test_the_model_is_for_inference_unless_it_is_to_be_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CACHE", str(files.cache_root()))  # native kernels stay compiled
    monkeypatch.setenv("HOME", str(folder.parent))
    adapter, path = folder / "adapter", f"~/{folder.name}"
    model = load(path, device="cpu", dtype="bfloat16", trainable=True)
    assert type(model.layers[0]) is TransformerBlock
    assert isinstance(model.output, ColumnParallelLinear)
    add_lora(model, LoraConfig(r=2))
    save_adapter(model, adapter)
    for trainable, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        model = load(
            path,
            device="cpu",
            dtype="bfloat16",
            adapter=f"{path}/adapter",
            max_batch_size=3,
            kv_cache_dtype="int8",
            trainable=trainable,
        )
        assert {parameter.dtype for parameter in lora_parameters(model)} == {dtype}
        assert isinstance(model.layers[0], InferenceBlock) != trainable
        assert isinstance(model.new_cache(1, 8), Int8KVCache)
        assert model.params.max_batch_size == 3
    with pytest.raises(ValueError, match="kv_cache_dtype='int4': leave it out, or give int8"):
        load(path, device="cpu", kv_cache_dtype="int4")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's table of mappings")
def test_weights_stay_mapped_and_are_never_made_a_second_time(folder: Path) -> None:
    for weight in load(folder, device=CPU, dtype=torch.float32).state_dict().values():
        assert is_mapped(weight, folder / "consolidated.00.pth")


def test_what_is_written_to_a_weight_does_not_reach_the_file(folder: Path) -> None:
    before = (folder / "consolidated.00.pth").read_bytes()
    load(folder, device=CPU, dtype=torch.float32).norm.weight.data += 1
    assert (folder / "consolidated.00.pth").read_bytes() == before


def test_a_dtype_asked_for_is_given(folder: Path) -> None:
    loaded = load(folder, device=CPU, dtype=torch.bfloat16)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    assert loaded.freqs.dtype == torch.float32
    assert not loaded.training


@pytest.mark.parametrize(
    ("params", "context", "theta"),
    [
        ({}, 4096, 10000.0),
        ({"rope_theta": 500000.0}, 8192, 500000.0),
        ({"rope_theta": 500000.0, "use_scaled_rope": True}, 131072, 500000.0),
        ({"rope_theta": 500000, "max_seq_len": 77}, 77, 500000),
    ],
)
def test_the_context_and_theta_that_a_file_leaves_out(
    tmp_path: Path, params: dict, context: int, theta: float
) -> None:
    path = tmp_path / "params.json"
    path.write_text(json.dumps({"dim": 64, "n_layers": 2, "n_heads": 4, **params}))
    args = read_params(path, max_batch_size=3)
    assert (args.max_seq_len, args.rope_theta, args.max_batch_size) == (context, theta, 3)


def test_metas_own_params_json(tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    path.write_text(
        '{"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, '
        '"vocab_size": -1}'
    )
    assert read_params(path) == ModelArgs(max_seq_len=4096, norm_eps=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"dim": 64, "n_layers": 2, "n_heads": 4, "n_head": 4, "foo": 1}', "foo, n_head"),
        ('{"dim": 64, "n_heads": 4}', "lacks n_layers"),
        ('{"dim": 64, "n_layers": 2, "n_heads": "4"}', "n_heads is '4'"),
        ('{"dim": 64, "n_layers": true, "n_heads": 4}', "n_layers is True"),
        ('{"dim": 64, "n_layers": 2, "n_heads": 5}', r"dim \(64\).*n_heads \(5\)"),
        ('{"dim": 64, "n_layers": 0, "n_heads": 4}', "n_layers=0"),
        ('{"dim": 64,', "is not JSON"),
        ("<html>", "is a web page"),
        ("", "is empty"),
        ("[1]", "JSON object, not a list"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_wrong_params_json(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_params(path)
    assert str(path) in str(error.value)


def test_a_missing_folder_file_or_shard(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is not there"):
        open_checkpoint(folder / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"params.json is a file"):
        open_checkpoint(folder / "params.json")
    (folder / "consolidated.02.pth").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"consolidated.01.pth is not there"):
        open_checkpoint(folder)
    for shard in folder.glob("*.pth"):
        shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .* \(it holds params.json"):
        open_checkpoint(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config.json has architectures=None"):
        open_checkpoint(folder)
    (folder / "params.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"params.json is not there"):
        read_params(folder / "params.json")


@pytest.mark.parametrize("kept", [0, 10, 1000, 0.5, -1])
def test_a_truncated_file(folder: Path, kept: float) -> None:
    path = folder / "consolidated.00.pth"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"consolidated.00.pth.*download or copy it again"):
        load(folder, device=CPU, dtype=torch.float32)


def test_bytes_that_would_lie_behind_the_end(folder: Path) -> None:
    path = folder / "consolidated.00.pth"
    with zipfile.ZipFile(path) as archive:
        last = max(info.header_offset for info in archive.infolist() if "/data/" in info.filename)
    data = bytearray(path.read_bytes())
    data[last + 28 : last + 30] = b"\xff\xff"  # the length of a field before the bytes
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"consolidated.00.pth should have at least .* bytes"):
        load(folder, device=CPU, dtype=torch.float32)


def test_a_web_page_instead_of_weights(folder: Path) -> None:
    (folder / "consolidated.00.pth").write_text("<!DOCTYPE html><html>Not found</html>")
    with pytest.raises(ValueError, match=r"consolidated.00.pth"):
        load(folder, device=CPU, dtype=torch.float32)


class _Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_not_opened(
    folder: Path, tmp_path: Path, zipped: bool
) -> None:
    mark = tmp_path / "ran"
    path = folder / "consolidated.00.pth"
    if zipped:
        torch.save({"output.weight": _Runs(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"output.weight": _Runs(mark)}))
    message = "holds .*getattr beside tensors" if zipped else "is no complete .pth file"
    with pytest.raises(ValueError, match=message):
        load(folder, device=CPU, dtype=torch.float32)
    assert not mark.exists()


def test_a_file_of_other_things_than_tensors(folder: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}, "step": 3}, folder / "consolidated.00.pth")
    with pytest.raises(ValueError, match="should contain a dictionary of tensors"):
        load(folder, device=CPU, dtype=torch.float32)


def test_missing_and_extra_weights_are_named(folder: Path) -> None:
    change_weights(folder, norm__weight=None, norm__bias=torch.ones(3))
    with pytest.raises(ValueError, match=r"lacks 1 .*norm.weight; has unexpected 1 .*norm.bias"):
        load(folder, device=CPU, dtype=torch.float32)


def test_a_wrong_number_of_layers_is_told(folder: Path) -> None:
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({**params, "n_layers": 3}))
    with pytest.raises(ValueError, match=r"n_layers=3.*lacks 9 .*layers\.2\.attention"):
        load(folder, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("name", ["attention.wq.weight", "feed_forward.w2.weight"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_matrix_in_fewer_parts_than_shards(parts: int, name: str, tmp_path: Path) -> None:
    """Only KV heads may be shared; here there are two, and what has two parts is no KV head."""
    args = tiny_args()
    keys = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of")
    params, weights = {key: getattr(args, key) for key in keys}, Transformer(args).state_dict()
    load(write_shards(tmp_path, weights, params, 4), device=CPU, dtype=torch.float32)
    name = f"layers.1.{name}"
    for i in range(4):
        path = tmp_path / f"consolidated.{i:02d}.pth"
        part = weights[name].chunk(parts, int("w2" in name))[i * parts // 4].clone()
        torch.save({**torch.load(path), name: part}, path)
    with pytest.raises(ValueError, match=rf"{name} in .*00.pth has shape .* in 4 shards"):
        load(tmp_path, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("shape", [(17,), (32, 1), (64,), (0,)])
def test_a_wrong_shape_is_told_with_both(folder: Path, shape: tuple[int, ...]) -> None:
    change_weights(folder, norm__weight=torch.ones(shape))
    with pytest.raises(ValueError, match=r"norm.weight in .*shape \(.*asks for \(32,\)"):
        load(folder, device=CPU, dtype=torch.float32)


def test_rotary_frequencies_in_old_checkpoints_are_known(folder: Path) -> None:
    change_weights(folder, rope__freqs=torch.ones(4))
    load(folder, device=CPU, dtype=torch.float32)
