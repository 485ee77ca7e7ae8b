"""benchmarks/: what is counted, what other programs are given, and what they answer."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny_args

from benchmarks import bars, gguf_files, inference
from llama import Tokenizer, Transformer
from llama.checkpoint.info import read_facts
from llama.checkpoint.opening import open_checkpoint
from llama.distributed import hardware_peak
from llama.evaluation.random_checkpoint import write_random_checkpoint
from llama.evaluation.speed import Request, bytes_read, metrics_of

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "params" / "tiny")
SETTINGS = {"device": "cpu", "threads": 1, "lengths": {1: 28, 2: 8}}


def test_each_backend_is_compared_with_its_counterpart_round_by_round() -> None:
    metrics = [m for m in metrics_of(8, 24, 4, [1, 2]) if m.name in ("prefill 24", "decode at 24")]
    request = metrics[0].request
    seconds = {
        "bfloat16": [(0.2, 0.4)] * 3,
        "bf12": [(0.2, 0.3)] * 3,
        "int4": [(0.1, 0.4), (0.2, 0.1), (0.1, 0.1)],
        "transformers": [(0.4, 0.4), (0.4, 0.8), (0.4, 0.2)],
        "llama.cpp BF16": [(9.0, 9.0)] * 3,
        "llama.cpp Q4_0": [(0.05, 0.2), (0.05, 0.2), (0.1, 0.2)],
    }
    times = {name: {request: pairs} for name, pairs in seconds.items()}
    peak = {"read": 1e6, "multiply": 1e9}
    weights = dict.fromkeys(seconds, 1000.0)
    found = inference.summary(tiny_args(), metrics, times, weights, peak)
    prefill, decode = (found["int4"][metric.name] for metric in metrics)
    assert prefill["rounds"] == pytest.approx([240, 120, 240])
    assert decode["rounds"] == pytest.approx([10, 40, 40])
    assert (prefill["median"], decode["median"]) == (240, 40)
    # In each round 1, 8 and 2 times as fast; the medians are 40 and 10.
    assert (prefill["x transformers"], decode["x transformers"]) == pytest.approx((4, 2))
    assert (prefill["x llama.cpp"], decode["x llama.cpp"]) == pytest.approx((0.5, 2))
    assert found["transformers"]["decode at 24"]["x transformers"] == 1
    assert prefill["x bfloat16"] == pytest.approx(2)
    bf12 = found["bf12"]["prefill 24"]
    assert (bf12["x bfloat16"], bf12["x llama.cpp"]) == pytest.approx((1, 45))
    assert "x bfloat16" not in found["transformers"]["decode at 24"]
    assert "x llama.cpp" not in found["transformers"]["decode at 24"]


def test_what_is_not_installed_is_left_out_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(inference.importlib.util, "find_spec", lambda name: None)
    assert inference.usable_others(None, cpu) == []
    assert capsys.readouterr().out == (
        "without transformers: transformers is not installed (pip install '.[bench]')\n"
        "without llama.cpp: llama_cpp is not installed (pip install '.[bench]')\n"
    )
    with pytest.raises(ValueError, match=r"--others transformers: .* \(pip install '\.\[bench\]'"):
        inference.usable_others(["transformers"], cpu)


def test_a_backends_process_has_only_what_it_measures() -> None:
    script = "import sys, runpy; runpy.run_path(sys.argv[1]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", script, ROOT / "benchmarks" / "backends.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_bars(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    metrics = metrics_of(8, 24, 4, [1, 2])
    backends = {
        backend: {"rates": {metric.name: {"median": 10.0 * i + 1} for metric in metrics}}
        for i, backend in enumerate(bars._COLOURS)
    }
    bars.draw(str(tmp_path / name), "A title", backends, metrics)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")


# Processes


@pytest.mark.slow
def test_a_run_with_one_backend_that_fails_and_one_that_is_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ask, calls = inference.Backend.ask, 0

    def kill_the_second(backend: inference.Backend, *arguments: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 4:  # int4's first turn, after two to warm up and one of bfloat16
            os.kill(backend._process.pid, signal.SIGKILL)
        return ask(backend, *arguments)

    monkeypatch.setattr(inference.Backend, "ask", kill_the_second)
    spec = {"kind": "llama", "path": TINY, "tokenizer": None}
    specs = {name: {**spec, "format": name} for name in ("bfloat16", "int4")}
    specs["int8"] = {**spec, "format": "int8", "path": "nowhere"}
    request = Request(1, 8, 3)
    times, sizes, failed = inference.measure(specs, [request], 2, 512, tmp_path, SETTINGS)
    assert {name: len(found[request]) for name, found in times.items()} == {"bfloat16": 2}
    assert sizes["bfloat16"]["load"] > 0
    assert sizes["bfloat16"]["peak"] > 5e7
    assert failed.pop("int8").startswith("MissingFileError: checkpoint folder nowhere is not there")
    assert failed == {"int4": "ended by signal 9, out of memory perhaps"}


@pytest.mark.slow
@pytest.mark.parametrize("program", ["transformers", "llama.cpp"])
def test_others_write_what_ours_writes(program: str, tmp_path: Path) -> None:
    for name in inference.MODULES[program]:
        pytest.importorskip(name)
    formats = ["bfloat16", "int8"]
    specs, weights = inference.make_files(
        read_facts(TINY), TINY, formats, [program], tmp_path, SETTINGS
    )
    assert set(specs) == set(weights) > set(formats)
    text = Tokenizer(f"{TINY}/tokenizer.model").encode("Once upon a time", bos=True)[:4]
    prompts = [text, [*text[:-1], text[0]]]
    answers = {}
    for name, spec in specs.items():
        backend = inference.Backend(name, tmp_path, **spec, **SETTINGS)
        try:
            backend.answer()
            for rows in (prompts[::-1], prompts):  # nothing of the first may be left
                backend._send({"prompts": rows, "tokens": 3, "sampled": False})
                answer = backend.answer()
        finally:
            backend.end()
        assert min(answer["first"], answer["rest"]) > 0
        answers[name] = answer["tokens"]
    assert all(tokens == answers["bfloat16"] for tokens in answers.values()), answers


@pytest.mark.slow
def test_the_command_ends_in_one_json_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(hardware_peak, "_SUMMED", 2**22)
    monkeypatch.setattr(hardware_peak, "_SIDE", 256)
    inference.main(
        TINY,
        formats=["bfloat16"],
        others=["transformers"],
        batches=[1],
        prompt=8,
        context=24,
        tokens=3,
        rounds=1,
        threads=1,
        device="cpu",
        plot=tmp_path / "bars.svg",
    )
    out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    assert list(report["backends"]) == ["bfloat16", "transformers"]
    assert report["backends"]["bfloat16"]["rates"]["prefill 8"]["x transformers"] > 0
    assert report["failed"] == {}
    assert out.index("hardware peak: ") < out.index("tokens per second")
    assert (tmp_path / "bars.svg").stat().st_size


# llama.cpp's files


LOGITS = """
import json, runpy, sys
kinds = runpy.run_path(sys.argv[1])["KINDS"]
spec = {"path": sys.argv[2], "device": "cpu", "threads": 1, "lengths": {"1": 96}}
backend = kinds["llama.cpp"](spec)
backend.load()
prompt = json.loads(sys.argv[3])
backend.start([prompt], 0, False)
print(json.dumps(backend.logits(len(prompt) - 1).tolist()))
"""


def llama_cpp_logits(gguf: Path, prompt: Sequence[int]) -> torch.Tensor:
    backends = ROOT / "benchmarks" / "backends.py"
    command = [sys.executable, "-c", LOGITS, backends, gguf, json.dumps(prompt)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.tensor(json.loads(done.stdout))


@pytest.mark.slow
def test_llama_cpp_computes_the_same_model(tmp_path: Path) -> None:
    """With grouped queries and scaled frequencies, in a model where both count."""
    for name in ("llama_cpp", "gguf"):
        pytest.importorskip(name)
    args = tiny_args(
        dim=64,
        vocab_size=512,
        multiple_of=32,
        max_seq_len=96,
        rope_theta=100.0,
        use_scaled_rope=True,
        rope_original_seq_len=32,
    )
    write_random_checkpoint(tmp_path / "grouped", args, tied=False)
    file = tmp_path / "grouped" / "consolidated.00.pth"
    weights = torch.load(file)
    for name, weight in weights.items():
        if weight.dim() == 2 and "tok_" not in name:
            weight *= 8
    torch.save(weights, file)
    model = Transformer(args).eval()
    model.load_state_dict(weights)
    prompt = torch.randint(512, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        ours = model(torch.tensor([prompt]))[0, -1]
        model.freqs = model.freqs * 1.02
        other = model(torch.tensor([prompt]))[0, -1]
    path = tmp_path / "model.gguf"
    gguf_files.write_gguf(open_checkpoint(tmp_path / "grouped"), path)
    error = (llama_cpp_logits(path, prompt) - ours).norm() / ours.norm()
    assert error < 0.03
    assert (other - ours).norm() / ours.norm() > 0.06  # a little off is seen
    assert gguf_files.gguf_bytes_read(path) == bytes_read(args, "bfloat16")


def test_of_a_tied_model_the_embedding_is_what_llama_cpp_multiplies(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    checkpoint = open_checkpoint(TINY)
    gguf_files.write_gguf(checkpoint, tmp_path / "tiny.gguf")
    found = gguf_files.gguf_bytes_read(tmp_path / "tiny.gguf")
    assert found == bytes_read(checkpoint.args, "bfloat16")
