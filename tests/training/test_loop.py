"""Whole training runs: what they learn, write, resume from and refuse."""

import contextlib
import json
import math
import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import SENTENCES, run_ranks, tiny_args
from training_runs import CONFIG, args, documents, losses, metrics, weights

from llama import Llama, Tokenizer
from llama.lora.adapter_layers import LoraConfig
from llama.training import dialog_document, text_document, train, validation
from llama.training import loop as loop_module
from llama.training.documents import Document
from llama.training.metrics import draw_curve, read_metrics
from llama.training.state import STATES
from llama.training.trainable_model import TrainableModel


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
        replace(CONFIG, batch_size=3).local_micro_batch_size(32, 2)
    assert CONFIG.local_micro_batch_size(32, 2) == 2
    assert replace(CONFIG, batch_size=64).local_micro_batch_size(1024, 2) == 4
    assert replace(CONFIG, micro_batch_size=1).local_micro_batch_size(32, 2) == 1


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
    nats = targets = size = text_nats = 0.0
    for document, text in zip(held_out, SENTENCES, strict=False):
        tokens = document.tokens.long()
        logits = llama.model(tokens[None, :-1])[0]
        each = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
        nats, targets = nats + each.sum().item(), targets + len(each)
        text_nats, size = (
            text_nats + each[:-1].sum().item(),
            size + len(text.encode()),
        )  # not its end
    last = evaluated[-1]
    assert last["valid_loss"] == pytest.approx(nats / targets, rel=1e-4)
    assert last["bits_per_byte"] == pytest.approx(text_nats / math.log(2) / size, rel=1e-4)
    assert last["valid_loss"] == min(line["valid_loss"] for line in evaluated)


def test_only_loss_tokens_are_learned(tokenizer: Tokenizer, tmp_path: Path) -> None:
    dialog = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the ball"}]
    document = dialog_document(tokenizer, dialog)
    config = replace(CONFIG, steps=60, learning_rate=1e-2)
    train(tmp_path, tokenizer, [document] * 8, config, args=args(tokenizer), held_out=[document])
    llama = Llama.build(tmp_path, dtype="float32", device="cpu")
    logits = llama.model(document.tokens[None, :-1].long())[0]
    each = torch.nn.functional.cross_entropy(logits, document.tokens[1:].long(), reduction="none")
    mask = document.loss_mask[1:]
    assert each[mask].mean() < 1.5
    assert each[~mask].mean() > 4


def test_the_best_model_is_kept_and_no_better_one_ends_the_run(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The validation text is noise: its loss only ever gets worse."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (30,), generator=generator, dtype=torch.int32)
    held_out = [Document(noise, torch.ones(30, dtype=torch.bool))]
    config = replace(CONFIG, eval_every=5, patience=2, learning_rate=1e-2)
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
    config = replace(CONFIG, steps=10, eval_every=4, optimizer=optimizer)
    call = (tokenizer, documents(tokenizer))
    given: dict[str, Any] = {"args": args(tokenizer), "held_out": documents(tokenizer)[:1]}
    train(tmp_path / "whole", *call, config, **given)
    step = TrainableModel.step
    made = []

    def interrupted(trainable: TrainableModel, *given: Any) -> Any:
        made.append(1)
        if len(made) == 6:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C
        return step(trainable, *given)

    with monkeypatch.context() as patch:
        patch.setattr(TrainableModel, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", *call, config, **given)
    stopped = len(losses(tmp_path / "parts"))
    assert stopped in (6, 7)
    assert f"stopped after step {stopped}; the same call resumes" in capsys.readouterr().err
    train(tmp_path / "parts", *call, config, **given)
    assert f"resumes after step {stopped}" in capsys.readouterr().err
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ValueError, match=r"another run \(learning_rate differ\)"):
        train(tmp_path / "parts", *call, replace(config, learning_rate=1e-3), **given)
    with pytest.raises(ValueError, match=r"another run \(dim, head_dim differ\)"):
        train(tmp_path / "parts", *call, config, **{**given, "args": args(tokenizer, dim=64)})
    with pytest.raises(ValueError, match=r"another run \(documents differ\)"):
        train(tmp_path / "parts", tokenizer, call[1][:9], config, **given)
    train(tmp_path / "parts", *call, replace(config, save_every=7), **given)  # done already
    assert len(losses(tmp_path / "parts")) == 10


def test_a_finished_run_is_extended(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    call = (tokenizer, documents(tokenizer))
    shape = args(tokenizer)
    config = replace(CONFIG, steps=6, save_every=2)
    train(tmp_path / "a", *call, config, args=shape)
    first = losses(tmp_path / "a")
    capsys.readouterr()
    train(tmp_path / "a", *call, replace(config, steps=8), args=shape)
    printed = capsys.readouterr().err
    assert "resumes after step 6" in printed
    assert (
        "it was set to 6 steps; from here the cosine schedule is that of a run of 8, at" in printed
    )
    assert losses(tmp_path / "a")[:6] == first
    rates = [line["lr"] for line in metrics(tmp_path / "a")]
    assert len(rates) == 8
    whole = [loop_module.learning_rate(config, 3e-3, step, 8) for step in range(8)]
    assert rates[6:] == whole[6:]
    assert rates[5] < rates[6]
    with pytest.raises(ValueError, match="has made 8 steps, more than the 7 asked for"):
        train(tmp_path / "a", *call, replace(config, steps=7), args=shape)
    train(tmp_path / "a", *call, replace(config, steps=None, epochs=8), args=shape)
    assert len(losses(tmp_path / "a")) > 8


def test_a_run_and_its_base_may_be_moved(
    tokenizer: Tokenizer, checkpoint: Path, tmp_path: Path
) -> None:
    call = (tokenizer, documents(tokenizer))
    config = replace(CONFIG, steps=2, lora=LoraConfig(r=2))
    shutil.copytree(checkpoint, tmp_path / "base")
    train(tmp_path / "run", *call, config, base=tmp_path / "base")
    shutil.move(tmp_path / "base", tmp_path / "moved")
    shutil.move(tmp_path / "run", tmp_path / "moved run")
    config = replace(config, steps=3)
    train(tmp_path / "moved run", *call, config, base=tmp_path / "moved")
    assert len(losses(tmp_path / "moved run")) == 3
    file = tmp_path / "moved" / "consolidated.00.pth"
    tensors = torch.load(file)
    tensors["layers.1.attention.wq.weight"][0, 0] += 1
    torch.save(tensors, file)
    with pytest.raises(ValueError, match=r"another run \(base differ\)"):
        train(tmp_path / "moved run", *call, replace(config, steps=4), base=tmp_path / "moved")


def test_one_ctrl_c_that_arrives_twice_stops_after_the_step() -> None:
    """torchrun forwards what the terminal has sent already; a later one interrupts at once."""
    with loop_module._deferred_interrupts() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        time.sleep(1.1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_evaluation_computes_on_the_models_device(tokenizer: Tokenizer) -> None:
    """The meta device stands for a GPU: mixing it with the CPU is an error."""
    from test_trainable_model import batch

    trainable = TrainableModel(tiny_args(vocab_size=128), None, CONFIG, torch.device("cpu"))
    trainable.device, trainable.computing = torch.device("meta"), contextlib.nullcontext
    trainable.module = lambda *inputs: (inputs[-1].sum().float(), inputs[-1].float())
    _, losses, targets = trainable.losses(batch(0))
    sums = validation.loss_sums(losses, targets, torch.ones(128, device="meta"))
    assert {x.device.type for x in (losses, targets, *sums)} == {"meta"}


def test_samples_record_no_cuda_graphs(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU they would capture FSDP's collectives."""
    asked = []

    class CPUEngine(validation.Engine):
        def __init__(self, *args: Any, **settings: Any) -> None:
            asked.append(settings["cuda_graphs"])
            super().__init__(*args, **settings)

    monkeypatch.setattr(validation, "Engine", CPUEngine)
    given = documents(tokenizer)
    config = replace(CONFIG, steps=1, samples=1)
    train(tmp_path, tokenizer, given, config, args=args(tokenizer), held_out=given[:1])
    assert asked == [False]


def test_a_rate_that_diverges_ends_the_run_and_keeps_the_last_good_state(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = (tokenizer, documents(tokenizer))
    config = replace(CONFIG, steps=10, save_every=4)
    step, made = TrainableModel.step, []

    def diverging(trainable: TrainableModel, *given: Any) -> Any:
        made.append(1)
        if len(made) == 8:
            trainable.model.norm.weight.data[0] = math.nan
        return step(trainable, *given)

    monkeypatch.setattr(TrainableModel, "step", diverging)
    message = r"step 8: the loss is nan .* lower learning_rate.* last good state is .*step-0000004"
    with pytest.raises(FloatingPointError, match=message):
        train(tmp_path, *call, config, args=args(tokenizer))
    assert all(weight.isfinite().all() for weight in weights(tmp_path).values())
    monkeypatch.undo()
    train(tmp_path, *call, config, args=args(tokenizer))
    assert len(losses(tmp_path)) == 10


def test_a_step_without_a_finite_gradient_changes_nothing(tokenizer: Tokenizer) -> None:
    from test_trainable_model import batch

    trainable = TrainableModel(tiny_args(vocab_size=128), None, CONFIG, torch.device("cpu"))
    before = {k: v.clone() for k, v in trainable.model.state_dict().items()}
    trainable.model.layers[0].attention.wq.weight.register_hook(lambda grad: grad * math.inf)
    _, norm = trainable.step([batch(0)], 1e-2, 100)
    assert not math.isfinite(norm)
    assert all(torch.equal(v, before[k]) for k, v in trainable.model.state_dict().items())


def full_disk(folder: str, tokenizer_path: str) -> str:
    tokenizer = Tokenizer(tokenizer_path)
    given = documents(tokenizer)
    config = replace(CONFIG, steps=4)
    train(folder, tokenizer, given, config, args=args(tokenizer))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # of any one file
    try:
        train(Path(folder) / "other", tokenizer, given, config, args=args(tokenizer))
    except OSError as error:
        return str(error)
    return ""


def test_a_full_disk_is_said_and_nothing_half_written_stays(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (message,) = run_ranks(1, full_disk, str(tmp_path), str(tokenizer.model_path))
    assert "step-0000004 can't be written" in message
    assert "the previous state is kept" in message
    assert not list((tmp_path / "other" / STATES).glob("step-*"))


def test_a_folder_with_another_model_is_left_alone(
    tokenizer: Tokenizer, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"holds a model that was not trained there.*as base"):
        train(checkpoint, tokenizer, documents(tokenizer), CONFIG, args=args(tokenizer))
    with pytest.raises(ValueError, match="no tokens to train on"):
        train(tmp_path / "a", tokenizer, [], CONFIG, args=args(tokenizer))
    with pytest.raises(ValueError, match=r"give args.*or base"):
        train(tmp_path / "b", tokenizer, documents(tokenizer), CONFIG)
    call = (tokenizer, documents(tokenizer))
    empty = [text_document(tokenizer, "", ends=False)]
    long_warmup = replace(CONFIG, steps=None, epochs=2, warmup_steps=50)
    with pytest.raises(ValueError, match="the validation documents have no tokens"):
        train(tmp_path / "d", *call, CONFIG, args=args(tokenizer), held_out=empty)
    with pytest.raises(ValueError, match="patience=1 needs validation documents"):
        train(tmp_path / "e", *call, replace(CONFIG, patience=1), args=args(tokenizer))
    with pytest.raises(ValueError, match=r"warmup_steps=50 is more than the \d+ steps"):
        train(tmp_path / "f", *call, long_warmup, args=args(tokenizer))
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
    state = tmp_path / "two" / STATES
    assert [path.name for path in state.glob("step-*")] == ["step-0000004"]
    assert evaluated(str(tmp_path / "two"), path, sharded) == found[0]
