import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from fixtures import tiny_args

from llama import Tokenizer, Transformer
from llama.args import ModelArgs
from llama.bench import bench, inputs, plan, report, workers
from llama.bench.plan import make_plan
from llama.bench.report import Request, metrics_of, paired_ratio
from llama.checkpoint.opening import open_checkpoint
from llama.distributed import hardware_peak

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "params" / "tiny")
SMALL = {"rounds": 2, "prompt": 8, "context": 24, "tokens": 3, "threads": 1, "device": "cpu"}
PEERS = ("transformers", "llama_cpp", "gguf", "matplotlib")


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> Path:
    """Where temporary folders are made; a quick ceiling, and no peer that is not asked for."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(hardware_peak, "_SUMMED", 2**22)
    monkeypatch.setattr(hardware_peak, "_SIDE", 256)
    return folder


def a_plan(path: str = TINY, **changes):
    given = {"quantize": None, "peers": "none", "batches": (1, 2), **SMALL, **changes}
    return make_plan(path, **given)


# ---------------------------------------------------------------- what is counted


def test_matrices_bytes_and_shares_by_hand() -> None:
    args = ModelArgs(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=1000, multiple_of=32)
    # Of a layer: wq and wo 64 x 64, wk and wv 32 x 64, and three of 64 x 192.
    assert report.matrix_parameters(args) == (2 * (2 * 4096 + 2 * 2048 + 3 * 12288), 64000)
    assert report.bytes_read(args, "bfloat16") == 2 * (98304 + 64000)
    assert report.bytes_read(args, "int8") == 162304 * 34 / 32
    assert report.bytes_read(args, "int4") == 98304 * 18 / 32 + 64000 * 34 / 32
    # Five steps after 10 tokens see 11 to 15 positions, of 2 x 2 layers x 2 heads x 16 x 2 bytes;
    # 100 tokens a second in 2 rows are 50 steps.
    share = report.decode_share(args, Request(2, 10, 5), 100, 324608, 1e9)
    assert share == pytest.approx((324608 + 2 * 13 * 256) * 50 / 1e9)
    share = report.prefill_share(args, Request(1, 10, 0), 100, 1e9)
    assert share == pytest.approx((10 * 98304 + 64000) * 2 * 10 / 1e9)


def test_ratios_are_taken_round_by_round() -> None:
    mine, base = [10.0, 1.0, 4.0], [5.0, 4.0, 1.0]  # 2, 1/4, 4: both medians are 4
    assert paired_ratio(mine, base) == 2
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        paired_ratio(mine, base[:2])


def test_each_is_compared_with_its_counterpart() -> None:
    args = tiny_args()
    metrics = [m for m in metrics_of(8, 24, 4, [1, 2]) if m.name in ("prefill 24", "decode at 24")]
    request = metrics[0].request
    seconds = {
        "int4": [(0.1, 0.4), (0.2, 0.1), (0.1, 0.1)],
        "transformers": [(0.4, 0.4), (0.4, 0.8), (0.4, 0.2)],
        "llama.cpp BF16": [(9.0, 9.0)] * 3,
        "llama.cpp Q4_0": [(0.05, 0.2), (0.05, 0.2), (0.1, 0.2)],
    }
    found = report.summary(
        args,
        metrics,
        {name: {request: times} for name, times in seconds.items()},
        dict.fromkeys(seconds, 1000.0),
        {"read": 1e6, "multiply": 1e9},
    )
    prefill, decode = (found["int4"][metric.name] for metric in metrics)
    assert prefill["rounds"] == pytest.approx([240, 120, 240])
    assert decode["rounds"] == pytest.approx([10, 40, 40])
    assert (prefill["median"], decode["median"]) == (240, 40)
    assert (prefill["x transformers"], decode["x transformers"]) == pytest.approx((4, 2))
    assert (prefill["x llama.cpp"], decode["x llama.cpp"]) == pytest.approx((0.5, 2))
    assert found["transformers"]["decode at 24"]["x transformers"] == 1
    assert "x llama.cpp" not in found["transformers"]["decode at 24"]


def test_one_request_gives_prefill_and_decoding_of_the_context() -> None:
    names = {metric.name: metric.request for metric in metrics_of(8, 24, 3, [1, 4])}
    assert list(names) == [
        *("prefill 8", "prefill 24", "decode batch 1", "decode sampled"),
        *("decode batch 4", "decode at 24"),
    ]
    assert names["prefill 24"] is names["decode at 24"]
    assert names["prefill 8"] == Request(1, 8, 0)
    assert [metric.name for metric in metrics_of(8, 8, 3, [1])].count("prefill 8") == 1


# ---------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quantize": "int3"}, "quantize='int3' is none of bfloat16, int8, int4"),
        ({"quantize": ""}, "quantize='' is none of"),
        ({"peers": ("vllm", "transformers")}, "peers='vllm' is none of transformers, llama.cpp"),
        ({"peers": "none,transformers"}, "peers='none' is none of"),
        ({"rounds": 0}, "rounds=0 should be a whole number greater than 0"),
        ({"prompt": 1.5}, "prompt=1.5 should be"),
        ({"context": True}, "context=True should be"),
        ({"tokens": "many"}, "tokens='many' should be"),
        ({"batches": (1, 0)}, "batches=0 should be"),
        ({"threads": 10**6}, "threads=1000000 should be 1 to"),
        ({"device": "tpu"}, "device 'tpu' is none of"),
        ({"tokens": 1020}, "tokens=1020 are too many for tiny, whose context is 1024"),
        ({"plot": "bench.pdf"}, "plot=bench.pdf should end with .png or .svg"),
        ({"json": "nowhere/bench.json"}, "nowhere/bench.json can't be written"),
    ],
)
def test_wrong_arguments(wrong: dict, message: str, temporary: Path) -> None:
    with pytest.raises(ValueError, match=message):
        bench(TINY, **{**SMALL, "peers": "none", **wrong})
    assert not any(temporary.iterdir())


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        bench("nowhere", **SMALL)


def test_several_ranks_are_refused(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start it without torchrun"):
        a_plan()


def test_lists_as_fire_hands_them_over() -> None:
    for given in ("int4,bfloat16", ("int4", "bfloat16"), ["bfloat16", "int4"]):
        assert a_plan(quantize=given).formats == ["bfloat16", "int4"]
    assert a_plan(batches=3).lengths == {1: 28, 3: 8}


def test_what_is_not_installed_is_left_out_unless_it_is_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    found = a_plan(peers=None)
    assert (found.peers, list(found.contenders)) == ([], ["bfloat16", "int8", "int4"])
    assert found.notes == [
        "without transformers: transformers is not installed (pip install 'llama[bench]')",
        "without llama.cpp: llama_cpp is not installed (pip install 'llama[bench]')",
    ]
    with pytest.raises(ValueError, match=r"peers=transformers: .*pip install 'llama\[bench\]'"):
        a_plan(peers="transformers")
    with pytest.raises(ValueError, match=r"matplotlib, which is not .* 'llama\[bench\]'"):
        bench(TINY, plot="bench.svg")


def test_a_context_beyond_the_models_is_said_to_be_shortened() -> None:
    found = a_plan(prompt=2000, context=4096)
    assert (found.prompt, max(found.lengths.values())) == (1020, 1024)
    assert found.notes[1] == "context 1020 in place of 4096: the model has no more"


def test_llama_cpp_has_the_formats_that_ours_have(monkeypatch) -> None:
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: name)
    found = a_plan(peers="llama.cpp,transformers", quantize="int4,int8").contenders
    assert list(found) == ["int8", "int4", "transformers", "llama.cpp Q8_0", "llama.cpp Q4_0"]
    assert found["llama.cpp Q4_0"] == {"kind": "llama.cpp", "format": "Q4_0"}


@pytest.mark.parametrize(("free", "memory"), [(10**5, 10**12), (10**12, 10**5)])
def test_what_does_not_fit_is_not_begun(monkeypatch, temporary: Path, free, memory) -> None:
    monkeypatch.setattr(inputs.shutil, "disk_usage", lambda path: type("", (), {"free": free}))
    monkeypatch.setattr(inputs, "this_machine", lambda n: [inputs_place(memory)])
    with pytest.raises((OSError, ValueError), match=r"set TMPDIR|take fewer, such as"):
        bench(f"{TINY}/params.json", **SMALL, peers="none")
    assert not any(temporary.iterdir())


def inputs_place(memory: float):
    from llama.checkpoint.memory import Device

    return Device("main memory", memory, "bfloat16")


# ---------------------------------------------------------------- whole runs


def test_a_run(capfd, tmp_path: Path, temporary: Path) -> None:
    threads = torch.get_num_threads()
    file = tmp_path / "bench.json"
    bench(TINY, "bfloat16,int4", "none", batches=(1, 2), json=str(file), **SMALL)
    out, err = capfd.readouterr()
    assert err == ""
    *text, last = out.splitlines()
    result = json.loads(last)
    assert json.loads(file.read_text()) == result
    assert set(result) == {
        *("model", "parameters", "machine", "ceiling", "settings", "contenders", "failed")
    }
    assert (result["model"], result["parameters"], result["failed"]) == ("tiny", 4656384, {})
    assert result["machine"]["threads"] == 1
    assert list(result["contenders"]) == ["bfloat16", "int4"]
    for contender in result["contenders"].values():
        assert contender["load"] > 0
        assert contender["peak"] > 5e7
        assert list(contender["rates"]) == [
            *("prefill 8", "prefill 24", "decode batch 1", "decode sampled"),
            *("decode batch 2", "decode at 24"),
        ]
        first = [8 / rate for rate in contender["rates"]["prefill 8"]["rounds"]]
        assert contender["first token"] == pytest.approx(sum(first) / 2)
        sampled, greedy = (contender["rates"][f"decode {n}"] for n in ("sampled", "batch 1"))
        ratios = [a / b for a, b in zip(sampled["rounds"], greedy["rounds"], strict=True)]
        assert sampled.pop("x greedy") == pytest.approx(sum(ratios) / 2)
        for entry in contender["rates"].values():
            assert set(entry) == {"median", "share", "rounds"}
            assert entry["median"] == pytest.approx(sum(entry["rounds"]) / 2)
            assert entry["share"] > 0
    assert text[0] == "tiny (4.66M parameters, its own weights)"
    assert text[2].startswith("ceiling: torch reads ")
    rows = [line for line in text if line.startswith("int4")]
    assert len(rows) == 4  # beginning, prefills, decode of one row, of more and at the context
    assert max(map(len, text)) <= 100
    assert not any(temporary.iterdir())
    assert torch.get_num_threads() == threads


def test_a_shape_gets_random_weights(capfd, tmp_path: Path, temporary: Path) -> None:
    shape = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 512}
    (tmp_path / "params.json").write_text(json.dumps(shape))
    bench(str(tmp_path), "int8", "none", batches=1, **SMALL)
    out = capfd.readouterr().out
    assert f"{tmp_path}/params.json has no weights: making random ones, 0.4 MB, in " in out
    assert list(json.loads(out.splitlines()[-1])["contenders"]) == ["int8"]
    assert not any(temporary.iterdir())


def test_one_that_fails_is_named_and_the_others_go_on(capfd, monkeypatch) -> None:
    prepare = inputs.prepare

    def misleading(*args):
        paths, weights = prepare(*args)
        return {**paths, "int8": "nowhere"}, weights

    monkeypatch.setattr(inputs, "prepare", misleading)
    bench(TINY, "int8,int4", "none", batches=1, **SMALL)
    out = capfd.readouterr().out
    why = "FileNotFoundError: checkpoint folder nowhere is not there"
    assert f"\nint8 failed: {why}" in out
    result = json.loads(out.splitlines()[-1])
    assert list(result["contenders"]) == ["int4"]
    assert result["failed"]["int8"].startswith(why)


def test_one_that_dies_while_it_works(tmp_path: Path) -> None:
    found = a_plan(quantize="bfloat16")
    spec = {**found.contenders["bfloat16"], "path": TINY}
    worker = workers.Worker("bfloat16", found, spec, tmp_path)
    try:
        assert worker.answer()["load"] > 0
        os.kill(worker._process.pid, signal.SIGKILL)
        running = {"bfloat16": worker}
        failures: dict[str, str] = {}
        times, _ = workers.take_turns(found, running, failures)
        assert (times, failures) == (
            {},
            {"bfloat16": "ended by signal 9, out of memory perhaps"},
        )
    finally:
        worker.end()


def test_nothing_is_left_when_all_fail(monkeypatch, temporary: Path) -> None:
    monkeypatch.setattr(inputs, "prepare", lambda *args: ({"int8": "nowhere"}, {}))
    with pytest.raises(ValueError, match="every contender failed"):
        bench(TINY, "int8", "none", batches=1, **SMALL)
    assert not any(temporary.iterdir())


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into Linux's /proc")
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    command = ["bench", TINY, "--peers", "none", "--rounds", "100000", "--device", "cpu"]
    running = subprocess.Popen(
        [sys.executable, "-m", "llama", *command, "--threads", "1"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while len(workers_of(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(workers_of(tmp_path)) >= 2
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert (running.returncode, err) == (130, "\ninterrupted\n")
    assert workers_of(tmp_path) == []
    assert not any(tmp_path.iterdir())


def workers_of(folder: Path) -> list[str]:
    """The contenders' processes that use that folder for temporary files."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mine = f"TMPDIR={folder}" in (process / "environ").read_text().split("\0")
            if mine and "contenders.py" in (process / "cmdline").read_text():
                found.append(process.name)
        except OSError:
            continue
    return found


def test_the_command_imports_no_peer() -> None:
    script = f"import sys, llama.bench; print(*(set({PEERS}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_a_contender_brings_nothing_of_the_project_but_itself() -> None:
    script = "import sys, runpy; runpy.run_path(sys.argv[1]); print('torch' in sys.modules)"
    path = ROOT / "llama" / "bench" / "contenders.py"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


# ---------------------------------------------------------------- what contenders read


@pytest.mark.parametrize("tied", [True, False])
def test_random_checkpoints(tied: bool, tmp_path: Path) -> None:
    args = tiny_args(vocab_size=600, max_seq_len=96, use_scaled_rope=True)
    inputs.make_checkpoint(tmp_path / "made", args, tied)
    inputs.make_tokenizer(tmp_path / "made" / "tokenizer.model", 600)
    found = open_checkpoint(tmp_path / "made")
    assert (found.args.dim, found.args.max_seq_len, found.tied) == (32, 96, tied)
    assert {weight.dtype for weight in found.weights.values()} == {torch.bfloat16}
    weights = torch.load(tmp_path / "made" / "consolidated.00.pth")
    assert weights["layers.1.attention.wq.weight"].float().std() == pytest.approx(0.02, rel=0.1)
    assert weights["norm.weight"].eq(1).all()
    assert not weights["layers.0.attention.wq.weight"].equal(
        weights["layers.1.attention.wq.weight"]
    )
    found.check_tokenizer(Tokenizer(tmp_path / "made" / "tokenizer.model"))
    with pytest.raises(ValueError, match=r"for 300 tokens.*put the checkpoint's own"):
        inputs.make_tokenizer(tmp_path / "other", 300)


@pytest.fixture
def grouped(tmp_path: Path) -> tuple[Path, Transformer]:
    """A model with grouped queries and scaled frequencies, where both count; and in float32."""
    args = tiny_args(
        dim=64,
        vocab_size=512,
        multiple_of=32,
        max_seq_len=96,
        rope_theta=100.0,
        use_scaled_rope=True,
        rope_original_seq_len=32,
    )
    inputs.make_checkpoint(tmp_path / "grouped", args, tied=False)
    file = tmp_path / "grouped" / "consolidated.00.pth"
    weights = torch.load(file)
    for name, weight in weights.items():
        if weight.dim() == 2 and "tok_" not in name:
            weight *= 8
    torch.save(weights, file)
    model = Transformer(args)
    model.load_state_dict(weights)
    return tmp_path / "grouped", model.eval()


LOGITS = """
import json, runpy, sys
kinds = runpy.run_path(sys.argv[1])["KINDS"]
spec = {"path": sys.argv[2], "device": "cpu", "threads": 1, "lengths": {"1": 96}}
contender = kinds["llama.cpp"](spec)
contender.load()
prompt = json.loads(sys.argv[3])
contender.start([prompt], 0, False)
print(json.dumps(contender.logits(len(prompt) - 1).tolist()))
"""


def llama_cpp_logits(gguf: Path, prompt: list[int]) -> torch.Tensor:
    """By llama.cpp in a process of its own, as in a run."""
    contenders = ROOT / "llama" / "bench" / "contenders.py"
    command = [sys.executable, "-c", LOGITS, contenders, gguf, json.dumps(prompt)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.tensor(json.loads(done.stdout))


def test_llama_cpp_computes_the_same_model(grouped: tuple[Path, Transformer]) -> None:
    for name in ("llama_cpp", "gguf"):
        pytest.importorskip(name)
    folder, model = grouped
    prompt = torch.randint(512, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        ours = model(torch.tensor([prompt]))[0, -1]
        model.freqs = model.freqs * 1.02
        other = model(torch.tensor([prompt]))[0, -1]
    path = folder / "model.gguf"
    inputs.write_gguf(open_checkpoint(folder), path)
    error = (llama_cpp_logits(path, prompt) - ours).norm() / ours.norm()
    assert error < 0.03
    assert (other - ours).norm() / ours.norm() > 0.06  # a little off is seen
    assert inputs.gguf_bytes_read(path) == report.bytes_read(model.params, "bfloat16")


def test_of_a_tied_model_the_embedding_is_what_llama_cpp_multiplies(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    inputs.write_gguf(open_checkpoint(TINY), tmp_path / "tiny.gguf")
    args = open_checkpoint(TINY).args
    assert inputs.gguf_bytes_read(tmp_path / "tiny.gguf") == report.bytes_read(args, "bfloat16")


@pytest.mark.parametrize("peer", ["transformers", "llama.cpp"])
def test_peers_write_what_ours_writes(peer: str, tmp_path: Path) -> None:
    for name in plan._PACKAGES[peer]:
        pytest.importorskip(name)
    found = a_plan(peers=peer, quantize="bfloat16,int8")
    failures: dict[str, str] = {}
    paths, weights = inputs.prepare(found, TINY, tmp_path, failures)
    assert failures == {}
    assert set(paths) == set(weights) == set(found.contenders)
    text = Tokenizer(f"{TINY}/tokenizer.model").encode("Once upon a time", bos=True)[:4]
    answers = {}
    for name, path in paths.items():
        spec = {**found.contenders[name], "path": path}
        worker = workers.Worker(name, found, spec, tmp_path)
        try:
            worker.answer()
            prompts = [text, [*text[:-1], text[0]]]
            worker.ask({"prompts": prompts[::-1], "tokens": 3, "sampled": False})
            # The second time, nothing of the first may be left.
            answer = worker.ask({"prompts": prompts, "tokens": 3, "sampled": False})
        finally:
            worker.end()
        assert answer["first"] > 0
        assert answer["rest"] > 0
        answers[name] = answer["tokens"]
    assert len(answers) == len(found.contenders)
    assert all(tokens == answers["bfloat16"] for tokens in answers.values()), answers


# ---------------------------------------------------------------- the figure


@pytest.mark.parametrize("name", ["bench.png", "bench.svg"])
def test_the_figure(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    metrics = metrics_of(8, 24, 4, [1, 2])
    contenders = {
        contender: {"rates": {metric.name: {"median": 10.0 * i + 1} for metric in metrics}}
        for i, contender in enumerate(report._COLOURS)
    }
    report.draw(str(tmp_path / name), "A title", contenders, metrics)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
