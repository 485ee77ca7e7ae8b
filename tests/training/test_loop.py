"""Whole training runs: what they learn, write, go on from and refuse."""

import json
import math
import random
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import SENTENCES, run_ranks, tiny_args

from llama import Llama, Tokenizer
from llama.checkpoint.loading import load
from llama.lora.adapter_layers import LoraConfig
from llama.training import TrainConfig, dialog_document, text_document, train
from llama.training.command import train_command
from llama.training.config import default_learning_rate, learning_rate
from llama.training.documents import Document
from llama.training.loop import STATES
from llama.training.report import draw_curve, read_metrics
from llama.training.trainee import Trainee

CONFIG = TrainConfig(
    steps=30,
    batch_size=4,
    seq_len=32,
    learning_rate=3e-3,
    warmup_steps=5,
    dtype=torch.float32,
    eval_every=10,
    samples=0,
)
ROOT = Path(__file__).parents[2]


def documents(tokenizer: Tokenizer) -> list[Document]:
    return [text_document(tokenizer, text) for text in SENTENCES * 4]


def args(tokenizer: Tokenizer, **changes: Any) -> Any:
    return tiny_args(**{"vocab_size": tokenizer.n_words, "max_seq_len": 64, **changes})


def metrics(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / STATES / "metrics.jsonl")


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = load(folder, device="cpu", dtype=torch.float32)
    return model.state_dict()


def test_the_cosine_warms_up_and_falls_to_its_end() -> None:
    config = TrainConfig(final_learning_rate=0.1, warmup_steps=10)
    rates = [learning_rate(config, 2.0, step, 110) for step in (0, 4, 9, 10, 60, 110, 500)]
    assert rates == pytest.approx([0.2, 1.0, 2.0, 2.0, 1.1, 0.2, 0.2])


def test_wsd_is_stable_and_then_falls_in_a_line() -> None:
    config = TrainConfig(schedule="wsd", decay=0.2, warmup_steps=10, final_learning_rate=0.5)
    rates = [learning_rate(config, 1.0, step, 100) for step in (0, 9, 10, 80, 90, 100)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.75, 0.5])


def test_warm_up_is_a_tenth_of_a_short_run() -> None:
    rates = [learning_rate(TrainConfig(), 1.0, step, 50) for step in range(6)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1.0


def test_the_learning_rate_that_is_usual_for_each_way_of_training() -> None:
    small, large = tiny_args(dim=256), tiny_args(dim=4096, n_heads=32, n_kv_heads=8)
    assert default_learning_rate(small, False, False) == pytest.approx(1.8e-3, rel=0.01)
    assert default_learning_rate(large, False, False) == pytest.approx(1.1e-4, rel=0.03)
    assert default_learning_rate(large, True, False) == 2e-5
    assert default_learning_rate(large, True, True) == 2e-4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs=0 should be greater than 0"),
        ({"steps": -1}, "steps=-1"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"learning_rate": math.inf}, "learning_rate=inf"),
        ({"schedule": "linear"}, "schedule='linear' is none of cosine, wsd"),
        ({"optimizer": "sgd"}, "optimizer='sgd' is none of adamw, muon"),
        ({"data_parallel": "zero"}, "data_parallel='zero' is none of ddp, fsdp"),
        ({"decay": 1.5}, "decay=1.5 is a share"),
        ({"weight_decay": -0.1}, "0 or more"),
        ({"quantize": "int8"}, "give lora as well"),
        ({"quantize": "int3", "lora": LoraConfig()}, "quantize='int3' is none of int8, int4"),
        ({"lora": LoraConfig(), "data_parallel": "fsdp"}, "trained with ddp"),
        ({"optimizer": "muon", "model_parallel_size": 2}, "each matrix whole"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**wrong)


def test_sequences_and_batches_that_do_not_fit_are_refused(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="seq_len=65 is more than the 64 positions"):
        train(
            tmp_path / "a",
            tokenizer,
            documents(tokenizer),
            replace(CONFIG, seq_len=65),
            args=args(tokenizer),
        )
    with pytest.raises(ValueError, match="batch_size=3 is not divisible by the 2 processes"):
        replace(CONFIG, batch_size=3).rows_at_once(32, 2)
    assert CONFIG.rows_at_once(32, 2) == 2
    assert replace(CONFIG, batch_size=64).rows_at_once(1024, 2) == 4
    assert replace(CONFIG, micro_batch_size=1).rows_at_once(32, 2) == 1


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_learns_and_writes_a_checkpoint_that_runs(
    tokenizer: Tokenizer, tmp_path: Path, optimizer: str
) -> None:
    config = replace(CONFIG, steps=60, seq_len=64, optimizer=optimizer, samples=2)
    held_out = documents(tokenizer)[:2]
    given = documents(tokenizer)
    train(tmp_path, tokenizer, given, config, args=args(tokenizer, dim=64), held_out=held_out)
    run = losses(tmp_path)
    assert len(run) == 60
    assert run[0] == pytest.approx(math.log(tokenizer.n_words), rel=0.05)
    assert run[-1] < 0.6 * run[0]
    evaluated = [line for line in metrics(tmp_path) if "valid_loss" in line]
    assert [line["step"] for line in evaluated] == [10, 20, 30, 40, 50, 60]
    llama = Llama.build(tmp_path, dtype="float32", device="cpu")
    assert torch.equal(llama.model.output.weight, llama.model.tok_embeddings.weight)
    assert llama.model.params.max_seq_len == 64
    # The same documents alone, by the model that was written.
    nats = targets = size = told = 0.0
    for document, text in zip(held_out, SENTENCES, strict=False):
        tokens = document.tokens.long()
        logits = llama.model(tokens[None, :-1])[0]
        each = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
        nats, targets = nats + each.sum().item(), targets + len(each)
        told, size = told + each[:-1].sum().item(), size + len(text.encode())  # not its end
    last = evaluated[-1]
    assert last["valid_loss"] == pytest.approx(nats / targets, rel=1e-4)
    assert last["bits_per_byte"] == pytest.approx(told / math.log(2) / size, rel=1e-4)
    assert last["valid_loss"] == min(line["valid_loss"] for line in evaluated)


def test_only_what_is_to_be_learned_is_learned(tokenizer: Tokenizer, tmp_path: Path) -> None:
    dialog = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the ball"}]
    document = dialog_document(tokenizer, dialog)
    config = replace(CONFIG, steps=60, learning_rate=1e-2)
    train(tmp_path, tokenizer, [document] * 8, config, args=args(tokenizer), held_out=[document])
    llama = Llama.build(tmp_path, dtype="float32", device="cpu")
    logits = llama.model(document.tokens[None, :-1].long())[0]
    each = torch.nn.functional.cross_entropy(logits, document.tokens[1:].long(), reduction="none")
    learned = document.learn[1:]
    assert each[learned].mean() < 1.5
    assert each[~learned].mean() > 4


def test_the_best_model_is_kept_and_no_better_one_ends_the_run(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What is held out is the opposite of what is learned: it only ever gets worse."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (30,), generator=generator, dtype=torch.int32)
    held_out = [Document(noise, torch.ones(30, dtype=torch.bool))]
    config = replace(CONFIG, eval_every=5, patience=2, learning_rate=1e-2, warmup_steps=1)
    train(
        tmp_path, tokenizer, documents(tokenizer), config, args=args(tokenizer), held_out=held_out
    )
    found = {line["step"]: line["valid_loss"] for line in metrics(tmp_path) if "valid_loss" in line}
    best = min(found, key=lambda step: found[step])
    assert max(found) == best + 10 < 30
    assert "stopped early: no better in 2 evaluations" in capsys.readouterr().err

    def loss_of(folder: Path) -> float:
        model = Llama.build(folder, dtype="float32", device="cpu").model
        logits = model(noise[None, :-1].long())[0]
        return torch.nn.functional.cross_entropy(logits, noise[1:].long()).item()

    assert loss_of(tmp_path) == pytest.approx(found[best], rel=1e-4)
    assert loss_of(tmp_path / "last") == pytest.approx(found[max(found)], rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    optimizer: str,
) -> None:
    config = replace(CONFIG, optimizer=optimizer)
    call = (tokenizer, documents(tokenizer))
    given: dict[str, Any] = {"args": args(tokenizer), "held_out": documents(tokenizer)[:1]}
    train(tmp_path / "whole", *call, config, **given)
    step = Trainee.step
    made = []

    def interrupted(trainee: Trainee, *given: Any) -> Any:
        made.append(1)
        if len(made) == 16:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C
        return step(trainee, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", *call, config, **given)
    stopped = len(losses(tmp_path / "parts"))
    assert stopped in (16, 17)
    assert f"stopped after step {stopped}; the same call goes on" in capsys.readouterr().err
    train(tmp_path / "parts", *call, config, **given)
    assert f"going on after step {stopped}" in capsys.readouterr().err
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ValueError, match=r"another run \(learning_rate differ\)"):
        train(tmp_path / "parts", *call, replace(config, learning_rate=1e-3), **given)
    with pytest.raises(ValueError, match=r"another run \(documents differ\)"):
        train(tmp_path / "parts", tokenizer, call[1][:9], config, **given)
    train(tmp_path / "parts", *call, replace(config, save_every=7), **given)  # done already
    assert len(losses(tmp_path / "parts")) == 30


def files(folder: Path) -> tuple[Path, Path]:
    data = folder / "data.txt"
    data.write_text("\n<|endoftext|>\n".join(SENTENCES * 4))
    return data, folder / "model"


def command(data: Path, model: Path, tokenizer: Tokenizer, *flags: str) -> list[str]:
    shape = ["--dim", "32", "--n_layers", "1", "--n_heads", "2", "--n_kv_heads", "1"]
    return [
        *(sys.executable, "-m", "llama.training", "--device", "cpu"),
        *("--data_path", str(data), "--model_path", str(model), *shape),
        *("--tokenizer_path", str(tokenizer.model_path), "--seq_len", "32"),
        *("--batch_size", "4", "--steps", "400", "--save_every", "5", *flags),
    ]


def test_killed_at_any_moment_it_goes_on_with_the_same_losses(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    data, model = files(tmp_path)
    run = {"cwd": ROOT, "capture_output": True, "text": True}
    whole = subprocess.run(command(data, tmp_path / "whole", tokenizer), **run)  # type: ignore[call-overload]
    assert whole.returncode == 0, whole.stderr
    moments = random.Random(3)
    for _ in range(2):
        process = subprocess.Popen(
            command(data, model, tokenizer), cwd=ROOT, stderr=subprocess.DEVNULL
        )
        before = len(losses(model))
        while len(losses(model)) < before + moments.randint(20, 60) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    again = subprocess.run(command(data, model, tokenizer), **run)  # type: ignore[call-overload]
    assert "going on after step" in again.stderr
    assert losses(model) == losses(tmp_path / "whole")
    assert len(list((model / STATES).glob("step-*"))) == 1


def test_a_rate_that_diverges_ends_the_run_and_keeps_the_last_good_state(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = (tokenizer, documents(tokenizer))
    step, made = Trainee.step, []

    def diverging(trainee: Trainee, *given: Any) -> Any:
        made.append(1)
        if len(made) == 18:
            trainee.model.norm.weight.data[0] = math.nan
        return step(trainee, *given)

    monkeypatch.setattr(Trainee, "step", diverging)
    message = r"step 18: the loss is nan .* lower learning_rate.* last good state is .*step-0000010"
    with pytest.raises(FloatingPointError, match=message):
        train(tmp_path, *call, CONFIG, args=args(tokenizer))
    assert all(weight.isfinite().all() for weight in weights(tmp_path).values())
    monkeypatch.undo()
    train(tmp_path, *call, CONFIG, args=args(tokenizer))
    assert len(losses(tmp_path)) == 30


def test_a_step_without_a_finite_gradient_changes_nothing(tokenizer: Tokenizer) -> None:
    from test_trainee import batch

    trainee = Trainee(tiny_args(vocab_size=128), None, CONFIG, torch.device("cpu"))
    before = {k: v.clone() for k, v in trainee.model.state_dict().items()}
    trainee.model.layers[0].attention.wq.weight.register_hook(lambda grad: grad * math.inf)
    _, norm = trainee.step([batch(0)], 1e-2, 100)
    assert not math.isfinite(norm)
    assert all(torch.equal(v, before[k]) for k, v in trainee.model.state_dict().items())


def full_disk(folder: str, tokenizer_path: str) -> str:
    tokenizer = Tokenizer(tokenizer_path)
    given = documents(tokenizer)
    train(folder, tokenizer, given, replace(CONFIG, steps=10), args=args(tokenizer))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # of any one file
    try:
        train(Path(folder) / "other", tokenizer, given, CONFIG, args=args(tokenizer))
    except OSError as error:
        return str(error)
    return ""


def test_a_full_disk_is_said_and_nothing_half_written_stays(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (message,) = run_ranks(1, full_disk, str(tmp_path), str(tokenizer.model_path))
    assert "step-0000010 can't be written" in message
    assert "the state before this one is still there" in message
    assert not list((tmp_path / "other" / STATES).glob("step-*"))


def test_a_folder_with_another_model_is_left_alone(
    tokenizer: Tokenizer, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"holds a model that was not trained there.*as base"):
        train(checkpoint, tokenizer, documents(tokenizer), CONFIG, args=args(tokenizer))
    with pytest.raises(ValueError, match="nothing to learn"):
        train(tmp_path / "a", tokenizer, [], CONFIG, args=args(tokenizer))
    with pytest.raises(ValueError, match=r"give args.*or base"):
        train(tmp_path / "b", tokenizer, documents(tokenizer), CONFIG)
    with pytest.raises(ValueError, match="vocab_size is 7, but"):
        train(tmp_path / "c", tokenizer, documents(tokenizer), CONFIG, args=tiny_args(vocab_size=7))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_trained_further(
    tokenizer: Tokenizer, checkpoint: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, steps=20, learning_rate=1e-4)
    train(tmp_path / "new", tokenizer, documents(tokenizer), config, base=checkpoint)
    first = losses(tmp_path / "new")[0]
    before, after = weights(checkpoint), weights(tmp_path / "new")
    assert before.keys() == after.keys()
    moved = {name: (after[name] - before[name]).abs().max() for name in before}
    assert all(0 < change < 20 * 2e-4 for change in moved.values())
    llama = Llama.build(checkpoint, dtype="float32", device="cpu")
    nats = count = 0.0
    for document in documents(tokenizer):
        tokens = document.tokens.long()[:33]
        logits = llama.model(tokens[None, :-1])[0]
        nats += torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum").item()
        count += len(tokens) - 1
    assert first == pytest.approx(nats / count, rel=0.1)  # of some of them


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_an_adapter_is_trained_beside_frozen_weights(
    tokenizer: Tokenizer, tmp_path: Path, quantize: str | None
) -> None:
    base = tmp_path / "base"
    config = replace(CONFIG, steps=60, dtype=None, tie_embeddings=False)
    shape = args(tokenizer, dim=64, multiple_of=32)
    train(base, tokenizer, documents(tokenizer), config, args=shape)
    content = (base / "consolidated.00.pth").read_bytes()
    lora = LoraConfig(r=4, alpha=8)
    config = replace(config, steps=40, learning_rate=1e-2, lora=lora, quantize=quantize)
    adapter = tmp_path / "adapter"
    other = [text_document(tokenizer, text[::-1]) for text in SENTENCES * 4]
    if quantize:
        with pytest.raises(ValueError, match=r"not with torch\.float32 on cpu"):
            train(adapter, tokenizer, other, replace(config, dtype=torch.float32), base=base)
    train(adapter, tokenizer, other, config, base=base, held_out=other[:2])
    assert losses(adapter)[-1] < 0.9 * losses(adapter)[0]
    assert (base / "consolidated.00.pth").read_bytes() == content
    assert (adapter / "adapter_model.safetensors").exists()
    prompts = [SENTENCES[0][:20]]
    adapted = Llama.build(base, adapter=adapter, device="cpu", quantize=quantize)
    plain = Llama.build(base, device="cpu", quantize=quantize)
    answers = [
        llama.text_completion(prompts, temperature=0, max_gen_len=20)[0]["generation"]
        for llama in (adapted, plain)
    ]
    assert answers[0] != answers[1]


def test_training_leaves_the_global_generator_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    config = replace(CONFIG, steps=1)
    train(tmp_path, tokenizer, documents(tokenizer), config, args=args(tokenizer))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_curve_and_the_metrics_are_drawn(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": i, "loss": 5 / i} for i in range(1, 50)]
    lines[9]["valid_loss"] = lines[39]["valid_loss"] = 1.0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 50, "lo')
    assert read_metrics(path) == lines
    draw_curve(path, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def evaluated(folder: str, tokenizer_path: str, sharded: str) -> list[float]:
    tokenizer = Tokenizer(tokenizer_path)
    config = replace(CONFIG, steps=4, eval_every=2, data_parallel=sharded, samples=1)
    given = documents(tokenizer)
    train(folder, tokenizer, given, config, args=args(tokenizer), held_out=given[:3])
    return [line["bits_per_byte"] for line in metrics(Path(folder)) if "bits_per_byte" in line]


@pytest.mark.parametrize("sharded", ["ddp", "fsdp"])
def test_two_processes_evaluate_sample_and_write_what_one_does(
    tokenizer: Tokenizer, tmp_path: Path, sharded: str
) -> None:
    path = str(tokenizer.model_path)
    alone = evaluated(str(tmp_path / "one"), path, sharded)
    found = run_ranks(2, evaluated, str(tmp_path / "two"), path, sharded)
    assert found[0] == pytest.approx(alone, rel=1e-4)
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-4)
    # One process goes on from what two have saved.
    config = replace(CONFIG, steps=4)
    state = tmp_path / "two" / STATES
    assert [path.name for path in state.glob("step-*")] == ["step-0000004"]
    assert config.steps == 4
    assert evaluated(str(tmp_path / "two"), path, sharded) == found[0]


def test_the_command_trains_and_names_a_flag_that_there_is_not(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    data, model = files(tmp_path)
    run: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True}
    wrong = subprocess.run(command(data, model, tokenizer, "--learning_rat", "1"), **run)
    assert wrong.returncode != 0
    assert "learning_rat" in wrong.stderr
    assert not model.exists()
    done = subprocess.run(command(data, model, tokenizer, "--steps", "3", "--num_gpus", "2"), **run)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"the model is in {model}") == 1
    assert len(losses(model)) == 3
    assert Llama.build(model, device="cpu").model.params.n_layers == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"base": "params/tiny", "dim": 8}, "has a shape of its own: leave out --dim"),
        ({"params": "params/tiny", "n_heads": 8}, "says the shape: leave out --n_heads"),
        ({"dtype": "float16"}, "too small a range to train in"),
        ({"data_path": "none.txt"}, "none.txt"),
        ({"lora": True}, "give the checkpoint to start from"),
        ({"lora": True, "lora_targets": "wq,q_proj"}, "'q_proj'"),
        ({"base": "params/tiny", "max_seq_len": 2000}, "params/tiny has 1024 positions"),
        ({"params": "params/Llama-3.2-1B", "batch_size": 0}, "batch_size=0"),
        ({"num_gpus": 0}, "num_gpus=0"),
        ({"tokenizer_path": "params/tiny/tokenizer.model", "base": "params/none"}, "params/none"),
    ],
)
def test_the_command_says_what_is_wrong(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict, message: str
) -> None:
    monkeypatch.chdir(ROOT)
    data, model = files(tmp_path)
    given = {"data_path": str(data), "tokenizer_path": tokenizer.model_path, "device": "cpu"}
    if "base" in flags:
        del given["tokenizer_path"]
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        train_command(**{"model_path": str(model), "steps": 1, **given, **flags})
    assert not model.exists()


def test_the_command_learns_a_tokenizer_where_there_is_none(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    data, model = files(tmp_path)
    shape = {"dim": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "max_seq_len": 64}
    given: dict[str, Any] = {"data_path": str(data), "vocab_size": 560, "steps": 2, "batch_size": 2}
    train_command(model_path=str(model), device="cpu", **given, **shape)
    assert Llama.build(model, device="cpu").tokenizer.n_words == 560


def test_a_released_shape_is_trained_from_its_params(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data, model = files(tmp_path)
    (tmp_path / "params.json").write_text(
        '{"dim": 32, "n_layers": 1, "n_heads": 2, "multiple_of": 16, "use_scaled_rope": true,'
        ' "rope_theta": 500000.0, "vocab_size": 128256, "norm_eps": 1e-5}'
    )
    given: dict[str, Any] = {"tokenizer_path": tokenizer.model_path, "max_seq_len": 64}
    train_command(
        str(data), str(model), steps=1, batch_size=2, params=str(tmp_path), device="cpu", **given
    )
    params = json.loads((model / "params.json").read_text())
    assert params["use_scaled_rope"]
    assert (params["vocab_size"], params["max_seq_len"]) == (tokenizer.n_words, 64)
