"""The command `llama train`: what it makes of flags and files, and what it refuses."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
from fixtures import SENTENCES
from training_runs import losses

from llama import Llama, Tokenizer, cli
from llama.training import TrainConfig
from llama.training import command as commands
from llama.training.command import train_command
from llama.training.state import STATES

ROOT = Path(__file__).parents[2]
SHAPE = {"dim": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1}
SHORT = TrainConfig(steps=2, batch_size=2, seq_len=32)


def files(folder: Path) -> tuple[Path, Path]:
    data = folder / "data.txt"
    data.write_text("\n<|endoftext|>\n".join(SENTENCES * 4))
    return data, folder / "model"


def flags(data: Path, model: Path, tokenizer: Tokenizer, *more: str) -> list[str]:
    return [
        *("train", "--device", "cpu", "--data_path", str(data), "--model_path", str(model)),
        *("--tokenizer_path", str(tokenizer.model_path), "--batch_size", "4"),
        *("--n_layers", "1", "--n_heads", "2", "--n_kv_heads", "1", "--max_seq_len", "32"),
        *more,
    ]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of `llama` with these arguments, called in this process."""
    monkeypatch.setattr(sys, "argv", ["llama", *arguments])
    try:
        cli.main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_with_the_same_losses(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    data, model = files(tmp_path)
    run: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True}

    def call(folder: Path) -> list[str]:
        steps = ("--steps", "200", "--save_every", "5")
        return [sys.executable, "-m", "llama", *flags(data, folder, tokenizer, *steps)]

    whole = subprocess.run(call(tmp_path / "whole"), **run)
    assert whole.returncode == 0, whole.stderr
    moments = random.Random(3)
    for _ in range(2):
        process = subprocess.Popen(call(model), cwd=ROOT, stderr=subprocess.DEVNULL)
        before = len(losses(model))
        while len(losses(model)) < before + moments.randint(20, 60) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    again = subprocess.run(call(model), **run)
    assert "resumes after step" in again.stderr
    assert losses(model) == losses(tmp_path / "whole")
    assert len(list((model / STATES).glob("step-*"))) == 1


@pytest.mark.slow
def test_several_processes_write_one_model(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data, model = files(tmp_path)
    arguments = flags(data, model, tokenizer, "--steps", "3", "--num_gpus", "2")
    done = subprocess.run(
        [sys.executable, "-m", "llama", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"the model is in {model}") == 1
    assert "2 processes on cpu" in done.stderr
    assert len(losses(model)) == 3
    assert Llama.build(model, device="cpu").model.params.n_layers == 1


def test_flags_and_environment_variables_are_the_settings(
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    data, model = files(tmp_path)
    monkeypatch.setenv("LLAMA_TRAIN_STEPS", "3")
    more = ("--valid-data-path", str(data), "--dtype", "bf16", "--samples", "0")
    assert command(monkeypatch, *flags(data, model, tokenizer, *more)) == 0
    assert len(losses(model)) == 3
    printed = capsys.readouterr().err
    lengths = [len(tokenizer.encode(text, bos=True, eos=True)) for text in SENTENCES * 4]
    assert f"train on 24 documents, {sum(lengths):,} tokens" in printed
    assert f"validate on 24 documents, {sum(lengths):,} tokens" in printed
    assert re.search(
        r"a model of \d\.\d\dM parameters, matrix products in bfloat16, on cpu, about "
        r"\d+\.\d MB of memory each\n3 steps, 0\.\d+ epochs, of 4 sequences of 32 tokens: 128 "
        r"tokens a step, learning rate 0\.0018\n",
        printed,
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--learning_rat", "1"), "--learning_rat. Did you mean --learning-rate?"),
        (("--steps", "2.5"), "2.5"),
        (("--steps", "1e3"), "1e3"),
        (("--optimizer", "sgd"), "Choose from"),
        (("--dtype", "int8"), "'int8' is none of"),
        (("--dtype", "float16"), "too small a range to train in"),
        (("--seq_len", "33"), "more than the 32 positions"),
        (("--dim", "33"), "not divisible by n_heads"),
        (("--seed", "-1"), "seed=-1 should be 0 or more"),
        (("--patience", "3"), "patience=3 needs validation documents"),
        (("--steps", "5", "--warmup_steps", "6"), "more than the 5 steps"),
        (("--vocab_size", "600"), "--vocab_size 600 is for a new tokenizer"),
        (("--lora_r", "3"), "--lora_r is for an adapter: give --lora too"),
        (("--lora",), "give --base"),
        (("--num_gpus", "0"), "num_gpus=0"),
        (("--valid_data_path", "none.txt"), "none.txt is not there"),
    ],
)
def test_wrong_flags_end_in_one_message_and_leave_no_folder(
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    wrong: tuple[str, ...],
    message: str,
) -> None:
    data, model = files(tmp_path)
    assert command(monkeypatch, *flags(data, model, tokenizer, *wrong)) != 0
    printed = capsys.readouterr()
    assert message in " ".join((printed.out + printed.err).replace("│", "").split())
    assert not model.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "data.jsonl is empty"),
        (b"\x00\x01" * 50, "data.jsonl holds zero bytes"),
        (b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        (b'{"text": "\xff"}\n', "line 1: its byte 11, 0xff, is not UTF-8"),
        (b'{"text": ' + b"9" * 5000 + b"}", "line 1: JSON that can't be read"),
        (b'{"text": ""}\n', "no document to train on, only blank lines"),
    ],
)
@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_unusable_text_leaves_no_folder(
    tokenizer: Tokenizer, tmp_path: Path, content: bytes, message: str, has_tokenizer: bool
) -> None:
    pytest.importorskip("tokenizers")
    data, model = tmp_path / "data.jsonl", tmp_path / "new" / "model"
    data.write_bytes(content)
    path = tokenizer.model_path if has_tokenizer else None
    with pytest.raises(ValueError, match=re.escape(message)):
        train_command(str(data), str(model), SHORT, tokenizer_path=path, device="cpu")
    assert not model.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"base": "params/tiny", "dim": 8}, "has a shape: leave out --dim"),
        ({"params": "params/tiny", "n_heads": 8}, "says the shape: leave out --n_heads"),
        ({"base": "params/tiny", "max_seq_len": 2000}, "params/tiny has 1024 positions"),
        ({"base": "params/Llama-3.2-1B"}, "params/Llama-3.2-1B"),
        ({"base": "params/tiny", "lora": True, "lora_targets": "wq,q_proj"}, "'q_proj'"),
        ({"tokenizer_path": "params/tiny/tokenizer.model", "base": "params/none"}, "params/none"),
        ({"tokenizer_path": "none.model"}, "none.model"),
        ({"model_path": "params/tiny"}, "holds a model that was not trained there"),
        ({"model_path": "setup.py/model"}, "Not a directory"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict, message: str
) -> None:
    monkeypatch.chdir(ROOT)
    data, model = files(tmp_path)
    settings = {"model_path": str(model), "tokenizer_path": tokenizer.model_path, "device": "cpu"}
    if "base" in given:
        del settings["tokenizer_path"]
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        train_command(str(data), config=SHORT, **{**settings, **given})
    assert not model.exists()
    assert not (ROOT / "params" / "tiny" / STATES).exists()


def test_only_the_command_line_acts_as_torchrun(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook on a machine with two GPUs keeps its process to itself."""
    started: list[Any] = []
    monkeypatch.setattr(commands.torchrun, "run", started.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    device = torch.device("cuda", 0)
    monkeypatch.setattr(commands.distributed, "select_device", lambda _: device)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data, model = files(tmp_path)
    settings: dict[str, Any] = {**SHAPE, "tokenizer_path": tokenizer.model_path}
    with pytest.raises(ValueError, match="a Python program trains in its own process"):
        train_command(str(data), str(model), SHORT, num_gpus=2, **settings)
    assert not commands._ran_as_torchrun(None, device, None)
    with pytest.raises(ValueError, match="from 1 to the 2 GPUs"):
        train_command(str(data), str(model), SHORT, num_gpus=3, **settings)
    arguments = flags(data, model, tokenizer, "--steps", "2")
    assert command(monkeypatch, *arguments, "--patience", "1") == 1  # found before the start
    assert not started
    assert command(monkeypatch, *arguments) == 0
    (run,) = started
    assert (run.nproc_per_node, run.training_script) == ("2", "llama.training")
    assert run.training_script_args == arguments[1:]
    monkeypatch.setattr(sys, "argv", ["notebook"])
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--num_gpus", "2"])
    assert len(started) == 1
    assert not model.exists()


def test_a_folder_in_which_a_run_is_going_on_is_refused(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    data, model = files(tmp_path)
    settings: dict[str, Any] = {**SHAPE, "device": "cpu", "tokenizer_path": tokenizer.model_path}
    (model / STATES).mkdir(parents=True)
    other = filelock.FileLock(model / STATES / ".lock")
    with other, pytest.raises(ValueError, match=f"another process trains in {model}; wait"):
        train_command(str(data), str(model), SHORT, **settings)
    train_command(str(data), str(model), SHORT, **settings)
    assert len(losses(model)) == 2


def test_a_tokenizer_is_trained_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As large as the text allows, and the second call finds it."""
    pytest.importorskip("tokenizers")
    data, model = files(tmp_path)
    shape: dict[str, Any] = {**SHAPE, "max_seq_len": 64}
    train_command(str(data), str(model), SHORT, device="cpu", **shape)
    printed = capsys.readouterr().err
    size = Llama.build(model, device="cpu").tokenizer.n_words
    assert 512 < size < 4096
    assert f"tokenizer.model: {size} tokens instead of 4,096; the text has no more" in printed
    train_command(str(data), str(model), TrainConfig(steps=3, batch_size=2, seq_len=32), **shape)
    assert len(losses(model)) == 3


def test_a_released_shape_is_trained_from_its_params(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data, model = files(tmp_path)
    (tmp_path / "params.json").write_text(
        '{"dim": 32, "n_layers": 1, "n_heads": 2, "multiple_of": 16, "use_scaled_rope": true,'
        ' "rope_theta": 500000.0, "vocab_size": 128256, "norm_eps": 1e-5}'
    )
    given: dict[str, Any] = {"tokenizer_path": tokenizer.model_path, "max_seq_len": 64}
    train_command(str(data), str(model), SHORT, params=str(tmp_path), device="cpu", **given)
    params = json.loads((model / "params.json").read_text())
    assert params["use_scaled_rope"]
    assert (params["vocab_size"], params["max_seq_len"]) == (tokenizer.n_words, 64)
