"""Packed weights for a GPU, by torch's kernel for CPUs; the layout of the weights for GPUs is
written out number by number."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llama import Llama, kernels
from llama.checkpoint import loading
from llama.checkpoint.convert import convert
from llama.checkpoint.loading import load
from llama.checkpoint.opening import open_checkpoint
from llama.quantization import cuda_packed
from llama.quantization.cuda_packed import CudaPacked, repack
from llama.quantization.linear_layers import PackedCudaLinear, PackedLinear, check_format

CPU = torch.device("cpu")
TINY = Path(__file__).parents[2] / "params" / "tiny"


def tiles_of(pairs: Tensor, steps: int) -> Tensor:
    """As in ATen/native/cuda/int4mm.cu: `steps` tiles of 16 inputs x 8 outputs lie together."""
    n, k = pairs.shape[0], 2 * pairs.shape[1]
    assert pairs.dtype == torch.uint8
    assert pairs.is_contiguous()
    assert n % 8 == k % (16 * steps) == 0
    shape = n // 8, k // (16 * steps), 32, steps // 2
    outer, at, lane, word = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    first = (at * steps + 2 * word) * 8 + lane % 4
    four = torch.stack([pairs[outer * 8 + lane // 4, first + 4 * i] for i in range(4)], dim=-1)
    halves = torch.cat((four >> 4, four & 15), dim=-1).long()
    return (halves << 4 * torch.arange(8)).sum(-1).to(torch.int32)  # wraps


def packed(n: int, k: int, bits: int) -> kernels.Packed:
    generator = torch.Generator().manual_seed(n + k + bits)
    weight = torch.randn(n, k, generator=generator) * torch.logspace(-2, 1, n).unsqueeze(1)
    return kernels.pack(weight.bfloat16(), bits)


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_packed, "_to_tiles", tiles_of)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("n", "k"), [(16, 32), (32, 64), (48, 96), (16, 128), (32, 160)])
def test_repacked_weights_are_the_same(
    n: int, k: int, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_packed, "_BLOCK_TILES", 2)
    weight = packed(n, k, bits)
    found = repack(weight, CPU)
    rounded = weight._replace(scales=weight.scales.bfloat16())
    assert torch.equal(found.unpack(), kernels.unpack(rounded))
    torch.testing.assert_close(found.unpack(), kernels.unpack(weight), rtol=2**-7, atol=0)
    planes = bits // 4
    assert found.tiles.numel() * 32 == n * k * bits
    assert found.scales.shape == (planes * k // 32, n, 2)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_kernel_is_given_what_multiplies_to_the_same(bits: int) -> None:
    weight = packed(64, 256, bits)
    halves, scales = cuda_packed._nibbles(weight), repack(weight, CPU).scales
    for_cpu = torch.ops.aten._convert_weight_to_int4pack_for_cpu(halves.int(), 1)
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    for dtype, most in ((torch.float32, 2e-3), (torch.bfloat16, 8e-3)):
        found = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.repeat(1, bits // 4).to(dtype), for_cpu, 32, scales.to(dtype)
        )
        expected = x.to(dtype).float() @ kernels.unpack(weight, torch.float32).t()
        assert (found.float() - expected).norm() < most * expected.norm()


def test_many_rows_are_multiplied_by_unpacked_weights() -> None:
    weight = repack(packed(64, 64, 8), CPU)
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        assert torch.equal(weight.times(x), x @ weight.unpack().t())


@pytest.mark.parametrize(("quantize", "most"), [("int8", 0.005), ("int4", 0.01)])
def test_a_model_of_repacked_layers(
    quantize: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundled one, with torch's kernel replaced by its meaning."""

    def matmul(x: Tensor, tiles: Tensor, group: int, scales: Tensor) -> Tensor:
        halves = CudaPacked(tiles, torch.ones_like(scales), 4).unpack()  # - 8
        scale, offset = scales.transpose(0, 1).unsqueeze(2).unbind(-1)
        return x @ (halves.unflatten(1, (-1, group)) * scale + offset).flatten(1).t()

    monkeypatch.setattr(cuda_packed, "_matmul", matmul)
    expected, found = (load(TINY, device=CPU, quantize=quantize, trainable=True) for _ in "ab")
    for name, layer in list(found.named_modules()):
        if isinstance(layer, PackedLinear):
            found.set_submodule(name, PackedCudaLinear(layer, repack(layer.packed, CPU)))
    tokens = torch.arange(60).view(3, 20) * 7
    with torch.no_grad():
        ours, theirs = (model(tokens).log_softmax(-1) for model in (found, expected))
    difference = F.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1).mean()
    assert 0 < difference < most


@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
def test_weights_for_a_gpu_are_packed_on_the_cpu(
    stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch's meta device in the place of a GPU."""
    folder, calls = TINY, []
    if stored == "int8":
        convert(str(TINY), str(tmp_path / "int8"), quantize="int8")
        folder = tmp_path / "int8"

    def on_device(layer: Any, packed: kernels.Packed, device: torch.device) -> PackedLinear:
        calls.append((packed.data.device.type, packed.scales.device.type, device.type))
        return PackedLinear(layer, packed)

    monkeypatch.setattr(loading, "packed_linear", on_device)
    checkpoint, device = open_checkpoint(folder), torch.device("meta")
    model = loading._read_model(checkpoint, checkpoint.args, device, torch.bfloat16, "int8")
    assert calls == [("cpu", "cpu", "meta")] * (7 * model.n_layers + 1)
    assert {weight.device for weight in model.parameters()} == {device}


def test_a_gpu_without_the_tensor_cores_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    cuda = torch.device("cuda", 0)
    with pytest.raises(ValueError, match=r"int4 weights need a GPU of compute .* cuda:0 has 7\.5"):
        check_format("int4", cuda, torch.bfloat16)
    check_format("bfloat16", cuda, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    check_format("int4", cuda, torch.bfloat16)
    with pytest.raises(ValueError, match=r"on a CPU or an NVIDIA GPU, not with torch\.float16 on"):
        check_format("int4", cuda, torch.float16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("n", "k"), [(16, 32), (64, 160), (256, 1024)])
def test_the_kernel_itself(n: int, k: int, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = packed(n, k, bits)
    if n < 100:
        expected = repack(weight, CPU)
    monkeypatch.undo()
    found = repack(weight, torch.device("cuda"))
    if n < 100:
        assert torch.equal(found.tiles.cpu(), expected.tiles)
    rounded = weight._replace(scales=weight.scales.bfloat16())
    assert torch.equal(found.unpack().cpu(), kernels.unpack(rounded))
    generator = torch.Generator().manual_seed(1)
    for rows in (1, 7, 16, 40, 300):
        x = torch.randn(rows, k, generator=generator).bfloat16()
        with torch.no_grad():
            y = found.times(x.cuda()).cpu().float()
        exact = x.float() @ kernels.unpack(weight, torch.float32).t()
        assert (y - exact).norm() < 8e-3 * exact.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("quantize", "most"), [("int8", 0.005), ("int4", 0.01)])
def test_a_gpu_predicts_what_a_cpu_predicts(
    quantize: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    tokens, logits = torch.arange(60).view(3, 20) * 7, []
    for device in ("cpu", "cuda"):
        llama = Llama.build(TINY, device=device, quantize=quantize)
        with torch.no_grad():
            logits.append(llama.model(tokens.to(device)).cpu().log_softmax(-1))
        prompts = [llama.tokenizer.encode("Once upon a time", bos=True)] * 3
        assert all(llama.generate(prompts, 20, temperature=0)[0])
    assert llama.engine._graphs is not None
    assert not llama.engine._graphs._failed
    difference = F.kl_div(logits[1], logits[0], log_target=True, reduction="none").sum(-1).mean()
    assert difference < most
