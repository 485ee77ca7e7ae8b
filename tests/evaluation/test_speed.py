"""`llama bench`: what is counted, what is asked for, and whole runs of tiny models."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny_args

from llama import Tokenizer, distributed
from llama.args import ModelArgs
from llama.checkpoint.info import Device, read_facts
from llama.checkpoint.opening import open_checkpoint
from llama.distributed import hardware_peak
from llama.evaluation import speed
from llama.evaluation.random_checkpoint import write_made_up_tokenizer, write_random_checkpoint
from llama.evaluation.speed import Metric, Request, bench, metrics_of

TINY = str(Path(__file__).parents[2] / "params" / "tiny")
SMALL: dict[str, Any] = {"prompt": 8, "context": 24, "tokens": 3, "rounds": 2, "device": "cpu"}


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made; the hardware's peak is measured quickly."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(hardware_peak, "_SUMMED", 2**22)
    monkeypatch.setattr(hardware_peak, "_SIDE", 256)
    threads = distributed.CpuThreads()  # not one that has met a busy machine in another test
    monkeypatch.setattr(distributed, "adaptive_threads", lambda: threads)
    return folder


# What is counted


def test_matrices_bytes_and_shares_by_hand() -> None:
    args = ModelArgs(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=1000, multiple_of=32)
    # Of a layer: wq and wo 64 x 64, wk and wv 32 x 64, and three of 64 x 192.
    assert speed.matrix_parameters(args) == (2 * (2 * 4096 + 2 * 2048 + 3 * 12288), 64000)
    assert speed.bytes_read(args, "bfloat16") == 2 * (98304 + 64000)
    assert speed.bytes_read(args, "int8") == 162304 * 34 / 32
    assert speed.bytes_read(args, "int4") == 98304 * 18 / 32 + 64000 * 34 / 32
    peak = {"read": 1e9, "multiply": 1e9}
    # Five steps after 10 tokens see 11 to 15 positions, of 2 x 2 layers x 2 heads x 16 x 2 bytes;
    # 100 tokens a second in 2 rows are 50 steps.
    share = Metric("decode", Request(2, 10, 5), False).share(100, args, 324608, peak)
    assert share == pytest.approx((324608 + 2 * 13 * 256) * 50 / 1e9)
    share = Metric("prefill", Request(1, 10, 0), True).share(100, args, 324608, peak)
    assert share == pytest.approx((10 * 98304 + 64000) * 2 * 10 / 1e9)


def test_one_request_gives_prefill_and_decoding_of_the_context() -> None:
    metrics = {metric.name: metric for metric in metrics_of(8, 24, 3, [1, 4, 1])}
    assert list(metrics) == [
        *("prefill 8", "prefill 24", "decode batch 1", "decode sampled"),
        *("decode batch 4", "decode at 24"),
    ]
    assert metrics["prefill 24"].request is metrics["decode at 24"].request
    assert metrics["prefill 8"].request == Request(1, 8, 0)
    assert metrics["prefill 24"].rate(first=0.5, rest=9) == 48
    assert metrics["decode batch 4"].rate(first=9, rest=0.5) == 24
    assert [metric.name for metric in metrics_of(8, 8, 3, [1])].count("prefill 8") == 1


def test_prompts_differ_from_round_to_round() -> None:
    first, again, second = (Request(2, 9, 1).prompts(50, seed) for seed in (1, 1, 2))
    assert first == again
    assert [len(prompt) for prompt in first] == [9, 9]
    assert len({tuple(prompt) for prompt in first + second}) == 4


# What is asked for


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--formats", "int3"], '"int3"'),
        (["--batches", "1,0"], 'Invalid value "0" for --batches. Must be > 0.'),
        (["--batches", "many"], '"many"'),
        (["--batches", "1,1.5"], '"1,1.5"'),
        (["--rounds", "0"], "Must be > 0."),
        (["--prompt", "1.5"], '"1.5"'),
        (["--round", "3"], "Did you mean --rounds?"),
        (["--threads", "1000000"], "threads=1000000 is more than the"),
        (["--device", "tpu"], "device 'tpu' is none of"),
        (["--tokens", "1020"], "tokens=1020: tiny has a context of 1024"),
    ],
)
def test_wrong_flags(
    run_command: Callable, flags: list[str], message: str, temporary: Path
) -> None:
    code, out, err = run_command("bench", TINY, *flags)
    assert (code in (1, 2), out) == (True, "")
    assert message in err
    assert "Traceback" not in err
    assert not any(temporary.iterdir())


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        bench("nowhere")


def test_several_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start it without torchrun"):
        bench(TINY)


def test_formats_the_device_lacks_are_left_out_unless_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: True)
    facts, mps = read_facts(TINY), torch.device("mps")
    assert list(speed.usable_formats(facts, ["int4", "int4"], torch.device("cpu"))) == ["int4"]
    assert list(speed.usable_formats(facts, None, mps)) == ["bfloat16"]
    assert "without int8: int8 weights are multiplied" in capsys.readouterr().err
    with pytest.raises(ValueError, match="int8 weights are multiplied"):
        speed.usable_formats(facts, ["int8"], mps)


@pytest.mark.parametrize(("free", "memory"), [(10**5, 10**12), (10**12, 10**5)])
def test_what_does_not_fit_is_not_begun(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, free: int, memory: int
) -> None:
    device = Device("CPU", memory, "bfloat16", is_cpu=True)
    monkeypatch.setattr(speed, "this_machine", lambda parameters: [device])
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": free}))
    with pytest.raises(ValueError, match=r"set TMPDIR|take fewer or smaller ones, such as"):
        bench(f"{TINY}/params.json", **SMALL)
    assert not any(temporary.iterdir())


# Whole runs


def test_a_run_in_json(run_command: Callable, temporary: Path) -> None:
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    code, out, err = run_command(
        "bench",
        TINY,
        "--formats",
        "bfloat16,int4",
        "--batches",
        "1,2",
        "--threads=1",
        "--json",
        *flags,
    )
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["model"], report["parameters"]) == ("tiny", 6722304)
    assert report["machine"]["threads"] == 1
    assert min(report["peak"][key] for key in ("read", "multiply")) > 0
    assert list(report["formats"]) == ["bfloat16", "int4"]
    for figures in report["formats"].values():
        assert figures.pop("load") > 0
        assert list(figures) == [metric.name for metric in metrics_of(8, 24, 3, [1, 2])]
        for entry in figures.values():
            assert len(entry["rounds"]) == 2
            assert entry["median"] == pytest.approx(sum(entry["rounds"]) / 2)
            assert min(entry["share"], *entry["rounds"]) > 0
    assert not any(temporary.iterdir())


def test_a_busy_machine_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    distributed.adaptive_threads().was_busy = True
    bench(TINY, formats=["int8"], batches=[1], threads=1, as_json=True, **SMALL)
    out, err = capsys.readouterr()
    assert "other processes competed for the cores" in err
    assert json.loads(out)["busy"]


def test_a_shape_gets_random_weights_and_a_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, temporary: Path
) -> None:
    shape = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 512}
    (tmp_path / "params.json").write_text(json.dumps({**shape, "max_seq_len": 20}))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        bench(str(tmp_path), formats=["int8"], batches=[1], threads=1, **SMALL)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    out, err = capsys.readouterr()
    assert f"{tmp_path}/params.json has no weights: making random ones, 0.4 MB" in err
    assert "no prompt is longer than 16: the model's context ends there" in err
    what, _where, peak, empty, head, *rows = out.splitlines()
    assert what.endswith(" parameters, random weights")
    assert peak.startswith("hardware peak: torch reads ")
    assert (head.split(), empty) == (["tokens", "per", "second", "int8", "of", "peak"], "")
    assert [row.split("  ")[0] for row in rows] == [
        *("load, s", "prefill 8", "prefill 16", "decode batch 1", "decode sampled", "decode at 16")
    ]
    assert not any(temporary.iterdir())


def test_answers_are_as_long_as_they_are_asked_for() -> None:
    request = Request(2, 4, 5)
    runner = speed.Runner(TINY, None, "float32", speed.lengths_of([request]), "cpu")
    runner.measure(request, seed=1)
    assert [len(answer.tokens) for answer in runner.answers] == [6, 6]
    assert speed.lengths_of([request, Request(2, 3, 1), Request(1, 8, 0)]) == {2: 11, 1: 9}


def test_a_step_decodes_a_token_of_each_row() -> None:
    """Also with more prompts than the engine runs in a step."""
    request = Request(20, speed.SHORT, 3)
    runner = speed.Runner(TINY, None, "float32", speed.lengths_of([request]), "cpu")
    runner.start(request.prompts(runner.model.vocab_size, 1), 3, False)
    lengths = [len(answer.tokens) for answer in runner.answers]
    for step in range(1, 4):
        runner.step()
        assert [len(answer.tokens) - step for answer in runner.answers] == lengths
    assert [len(row) for row in runner.end()] == [4] * 20


def test_a_broken_model_is_an_error() -> None:
    request = Request(1, speed.SHORT, 1)
    runner = speed.Runner(TINY, None, "float32", speed.lengths_of([request]), "cpu")
    torch.nn.init.constant_(runner.model.norm.weight, float("nan"))
    with pytest.raises(FloatingPointError):
        runner.measure(request, seed=1)


@pytest.mark.parametrize("tied", [True, False])
def test_random_checkpoints(tied: bool, tmp_path: Path) -> None:
    args = tiny_args(vocab_size=600, max_seq_len=96, use_scaled_rope=True)
    write_random_checkpoint(tmp_path / "made", args, tied)
    write_made_up_tokenizer(tmp_path / "made" / "tokenizer.model", 600)
    found = open_checkpoint(tmp_path / "made")
    assert (found.args.dim, found.args.max_seq_len, found.tied) == (32, 96, tied)
    assert {weight.dtype for weight in found.weights.values()} == {torch.bfloat16}
    weights = torch.load(tmp_path / "made" / "consolidated.00.pth")
    spreads = weights["output.weight"].float().std(1)
    assert spreads.log().mean().exp() == pytest.approx(0.02, rel=0.1)
    assert spreads.log().std() == pytest.approx(0.24, rel=0.1)  # of rows of 32: theirs, and chance
    assert weights["norm.weight"].eq(1).all()
    first, second = (weights[f"layers.{i}.attention.wq.weight"] for i in (0, 1))
    assert not first.equal(second)
    found.check_tokenizer(Tokenizer(tmp_path / "made" / "tokenizer.model"))
    with pytest.raises(ValueError, match=r"for 300 tokens.*put the checkpoint's own"):
        write_made_up_tokenizer(tmp_path / "other", 300)
