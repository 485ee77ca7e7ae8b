"""lm-eval's tasks on local data: the adapter beside lm-eval's own model on the same weights."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import SENTENCES, tiny_args, write_sentencepiece

from llama import Llama, Tokenizer, Transformer
from llama.checkpoint.convert import convert
from llama.evaluation.evaluate import evaluate, read_questions
from llama.evaluation.scoring import score_choices

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")  # lm-eval's own model needs it

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from llama.evaluation import lm_eval_model  # noqa: E402
from llama.evaluation.lm_eval_model import LlamaLM, find_tasks  # noqa: E402

ROOT = Path(__file__).parents[2]
TINY = ROOT / "params" / "tiny"
PROMPTS = [
    "Once upon a time, there was a little girl named",
    "Tom and his dog went to the park. They saw a big",
    "One day, it was very cold outside. Mia wanted to\n\n",
    'The bird said, "I am so happy! Thank you for',
    "Sam",
    "They walked and walked. " * 40 + "At last they found",
]
CHOICES = [
    ["Lily", "the", "Lily. She loved to play", "ball?"],
    ["ball", "tree. It was tall", "red", "of"],
    ["play in the snow", "x", "go home and sleep, and so she did"],
    ["helping me", "helping", "the the", "é é"],
    [" was", "was a boy who liked cars", "?"],
    ["a house", "an old house in the woods", "12"],
]
ANSWERS = [2, 0, 1, 0, 1, 0]
DIALOG = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": " Hello there! "},
    {"role": "assistant", "content": "Hi. What\nis it?"},
    {"role": "user", "content": '"A dog?"'},
]


def requests(*arguments: tuple) -> list[Instance]:
    return [Instance(request_type="", doc={}, arguments=a, idx=0) for a in arguments]


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory, ours: LlamaLM) -> Path:
    """A folder with a task of each kind: local_choice, local_answer, local_text, local_next.

    Those of local_plain have one space between a prompt and its choices, and only ASCII.
    """
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"prompt": p, "choices": c, "answer": a}
        for p, c, a in zip(PROMPTS, CHOICES, ANSWERS, strict=True)
    ]
    plain = [rows[i] for i in (0, 1, 5)]
    written = ours.generate_until(requests((PROMPTS[0], {"max_gen_toks": 4})))
    greedy = {"prompt": PROMPTS[0], "choices": written}
    texts = [{"text": t} for t in (*SENTENCES[:3], " ".join(PROMPTS * 4), "Crème brûlée. ")]
    kinds = {
        "choice": (rows, "multiple_choice", ["acc", "acc_norm"]),
        "answer": (rows, "generate_until", ["exact_match"]),
        "text": (texts, "loglikelihood_rolling", ["word_perplexity", "bits_per_byte"]),
        "next": ([*rows, greedy], "loglikelihood", ["perplexity", "acc"]),
        "plain": (plain, "multiple_choice", ["acc", "acc_norm"]),
    }
    for name, (entries, output_type, metrics) in kinds.items():
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
        config: dict[str, Any] = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder)},
            "test_split": "test",
            "output_type": output_type,
            "doc_to_text": "{{prompt}}" if "prompt" in entries[0] else "",
            "doc_to_target": "{{text}}" if name == "text" else "{{choices[0]}}",
            "metric_list": [{"metric": metric} for metric in metrics],
        }
        if output_type == "multiple_choice":
            config |= {"doc_to_choice": "choices", "doc_to_target": "answer"}
        if name == "answer":
            config["generation_kwargs"] = {"until": ["."], "max_gen_toks": 30, "do_sample": False}
        (folder / f"{name}.yaml").write_text(json.dumps(config))  # which is YAML too
    return folder


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    convert(str(TINY), str(folder), to="hf")
    return str(folder)


@pytest.fixture(scope="session")
def theirs(hf_folder: str) -> Callable[..., HFLM]:
    return lambda **settings: HFLM(
        pretrained=hf_folder, device="cpu", dtype="float32", batch_size=3, **settings
    )


@pytest.fixture(scope="session")
def ours() -> LlamaLM:
    return LlamaLM(str(TINY), device="cpu", dtype="float32")


@pytest.fixture
def only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the seconds that lm-eval takes to list its own tasks and its surroundings."""
    manager = functools.partial(TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval_model, "TaskManager", manager)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture
def run(tasks: Path, only_ours: None) -> Callable[..., Any]:
    """lm-eval's figures of a task, and what the model answered to each of its requests."""
    manager = lm_eval_model.TaskManager(include_path=str(tasks))

    def simple_evaluate(model: Any, task: str, **settings: Any) -> Any:
        results = lm_eval.simple_evaluate(
            model=model, tasks=[task], task_manager=manager, bootstrap_iters=9, **settings
        )
        samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
        answers = [answer for sample in samples for (answer,) in sample["resps"]]
        figures = results["results"][task]
        return {k: v for k, v in figures.items() if isinstance(v, float)}, answers

    return simple_evaluate


# Agreement with lm-eval's own model


def assert_same_likelihoods(found: Sequence[Any], expected: Sequence[Any]) -> None:
    assert len(found) == len(expected) > 0
    for (value, is_greedy), (other, other_greedy) in zip(found, expected, strict=True):
        assert value == pytest.approx(other, abs=1e-3)
        assert is_greedy == other_greedy


@pytest.mark.parametrize("settings", [{}, {"apply_chat_template": True}])
def test_choices_agree(run: Callable, ours: LlamaLM, theirs: Callable, settings: dict) -> None:
    figures, answers = run(ours, "local_choice", **settings)
    expected, expected_answers = run(theirs(), "local_choice", **settings)
    assert_same_likelihoods(answers, expected_answers)
    assert figures == pytest.approx(expected)


def test_choices_without_lm_eval_agree(run: Callable, ours: LlamaLM, tasks: Path) -> None:
    figures, _ = run(ours, "local_plain")
    questions = read_questions(str(tasks / "plain.jsonl"))
    score = score_choices(ours.llama.model, ours.llama.tokenizer, questions)
    assert (score.acc, score.acc_norm) == (figures["acc,none"], figures["acc_norm,none"])
    assert score.acc_stderr == pytest.approx(figures["acc_stderr,none"])
    assert score.acc_norm_stderr == pytest.approx(figures["acc_norm_stderr,none"])


def test_likelihoods_agree(run: Callable, ours: LlamaLM, theirs: Callable) -> None:
    figures, answers = run(ours, "local_next")
    expected, expected_answers = run(theirs(), "local_next")
    assert_same_likelihoods(answers, expected_answers)
    assert answers[-1][1]
    assert figures == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"apply_chat_template": True}])
def test_answers_agree(run: Callable, ours: LlamaLM, theirs: Callable, settings: dict) -> None:
    _, answers = run(ours, "local_answer", **settings)
    _, expected = run(theirs(), "local_answer", **settings)
    assert answers == expected
    assert any(answers)
    assert not any("." in answer for answer in answers)


def test_perplexities_agree(run: Callable, ours: LlamaLM, theirs: Callable) -> None:
    """Theirs begins a text with two begin_of_text, and scores one, unless it is told not to."""
    figures, answers = run(ours, "local_text")
    expected, expected_answers = run(theirs(add_bos_token=False), "local_text")
    assert answers == pytest.approx(expected_answers, rel=1e-5)
    assert figures == pytest.approx(expected, rel=1e-5)


def test_what_does_not_fit_agrees(
    run: Callable, theirs: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = LlamaLM(str(TINY), device="cpu", dtype="float32", max_seq_len=64)
    _, answers = run(ours, "local_choice")
    assert "3 of 21 inputs do not fit" in capsys.readouterr().err
    assert_same_likelihoods(answers, run(theirs(max_length=64), "local_choice")[1])
    _, answers = run(ours, "local_answer")
    assert "1 of 6 prompts leave no room for an answer" in capsys.readouterr().err
    assert answers == run(theirs(max_length=64), "local_answer")[1]
    _, answers = run(ours, "local_text")
    expected = run(theirs(max_length=64, add_bos_token=False), "local_text")[1]
    assert answers == pytest.approx(expected, rel=1e-5)


def test_continuations_of_nothing_agree(ours: LlamaLM, theirs: Callable) -> None:
    pairs = requests(("", "Once upon"), ("", " a"), (" ", "a"), ("\n", "Once"))
    assert_same_likelihoods(ours.loglikelihood(pairs), theirs().loglikelihood(pairs))
    assert ours.loglikelihood_rolling(requests(("",))) == [0.0]


# Prompts


@pytest.fixture
def llama2(tmp_path: Path) -> LlamaLM:
    tokenizer = Tokenizer(write_sentencepiece(tmp_path / "tokenizer.model"))
    return LlamaLM(Llama(Transformer(tiny_args(vocab_size=tokenizer.n_words)), tokenizer))


@pytest.fixture(params=["llama3", "llama2"])
def model(request: pytest.FixtureRequest) -> LlamaLM:
    return request.getfixturevalue("ours" if request.param == "llama3" else "llama2")


def test_a_prompt_in_chat_format_is_read_as_it_was_written(model: LlamaLM) -> None:
    for dialog in (DIALOG, DIALOG[1:2]):
        text = model.apply_chat_template(dialog)
        assert model.tok_encode(text) == model.llama.formatter.encode_dialog_prompt(dialog)


def test_the_beginning_of_an_answer_stays_open(model: LlamaLM) -> None:
    begun = {"role": "assistant", "content": " Yes, "}
    text = model.apply_chat_template([*DIALOG, begun], add_generation_prompt=False)
    prompt = model.apply_chat_template(DIALOG)
    assert text == (prompt + "Yes," if prompt.endswith("\n") else prompt + " Yes,")


def test_chat_prompts_of_llama3_are_spelled(ours: LlamaLM) -> None:
    assert ours.apply_chat_template(DIALOG[1:2]) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello there!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert ours.chat_template(True) == "ChatFormat"
    assert ours.chat_template(False) is None


def test_messages_that_spell_special_tokens_are_refused(ours: LlamaLM) -> None:
    message = {"role": "user", "content": "a <|eot_id|> b"}
    with pytest.raises(ValueError, match=r"a user's message has <\|eot_id\|>"):
        ours.apply_chat_template([message])


def test_text_spells_no_special_tokens(model: LlamaLM) -> None:
    tokenizer = model.llama.tokenizer
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    plain = f"dog {names[tokenizer.eos_id]} and {names[tokenizer.bos_id]} now"
    assert model.tok_encode(plain) == tokenizer.encode(plain, bos=True)
    assert model.tok_encode(plain, add_special_tokens=False) == tokenizer.encode(plain)
    chat = model.apply_chat_template(DIALOG)
    start, rest = model._encode_pair(chat, f" {plain}")
    assert tokenizer.eos_id not in rest
    assert start == model.tok_encode(chat.rstrip())
    assert tokenizer.decode(rest).endswith(plain)


def test_a_continuation_that_ends_a_token_is_read_alone(ours: LlamaLM) -> None:
    """ "The" is a token: none is left for "he" after "T"."""
    encode = ours.llama.tokenizer.encode
    assert len(encode("The")) == len(encode("T")) == 1
    assert ours._encode_pair("T", "he") == (encode("T", bos=True), encode("he"))


def test_white_space_goes_to_the_continuation(ours: LlamaLM) -> None:
    encode = ours.llama.tokenizer.encode
    start, rest = ours._encode_pair("The dog ", "ran")
    assert start == encode("The dog", bos=True)
    assert rest == encode(" ran")


# Settings of generation


def settings_of(model: LlamaLM, **settings: Any) -> Any:
    return model._answer("The dog", settings, 7, [])


def test_temperatures(ours: LlamaLM) -> None:
    """As in lm-eval: greedy unless a temperature is given or sampling is asked for."""

    def temperature(**settings: Any) -> float:
        return settings_of(ours, **settings).params.temperature

    assert temperature() == 0
    assert temperature(temperature=0.7) == 0.7
    assert temperature(temperature=1.0, do_sample=False) == 0
    assert temperature(temperature=0.7, do_sample=True) == 0.7
    assert temperature(do_sample=True) == 1.0
    assert temperature(do_sample=True, temperature=0.0) == 0


def test_other_settings(ours: LlamaLM) -> None:
    sequence = settings_of(ours, until="\n\n", max_new_tokens=9, top_p=0.5, top_k=3, num_beams=1)
    params = sequence.params
    assert (sequence.stop, sequence.max_gen_len) == (("\n\n",), 9)
    assert (params.top_p, params.top_k, params.seed) == (0.5, 3, 7)
    sequence = settings_of(ours, until=["a", "", "b"])
    assert (sequence.stop, sequence.max_gen_len) == (("a", "b"), 256)
    assert sequence.params.top_p == 1
    with pytest.raises(ValueError, match=r"num_beams=4, which is not supported"):
        settings_of(ours, num_beams=4)
    with pytest.raises(ValueError, match=r"answers of 1024 tokens leave no room.*context of 1024"):
        settings_of(ours, max_gen_toks=1024)


def test_repeats_are_drawn_anew_and_the_same_next_time(ours: LlamaLM) -> None:
    sampled = {"until": [], "max_gen_toks": 12, "temperature": 1.0}
    greedy = {"until": [], "max_gen_toks": 12}
    asked = requests(*[("Once upon", sampled)] * 3, ("Once upon", greedy), ("Once upon", greedy))
    answers = ours.generate_until(asked)
    assert len(set(answers)) == 4
    assert ours.generate_until(asked) == answers
    other = LlamaLM(ours.llama, seed=100)
    assert other.generate_until(asked)[:3] != answers[:3]


def test_a_prompt_keeps_what_fits_beside_its_answer(ours: LlamaLM) -> None:
    cuts: list[int] = []
    size = len(ours.tok_encode("dog " * 50))
    assert size < 60
    ours._answer("dog " * 50, {"max_gen_toks": 1024 - size}, 0, cuts)
    whole = ours._answer("dog " * 50, {"max_gen_toks": 1024 - size + 1}, 0, cuts)
    assert cuts == [0, 1]
    assert whole.prompt == ours.tok_encode("dog " * 50)[1:]


def test_what_cannot_be_answered_leaves_nothing_running(
    ours: LlamaLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ours.llama.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ours.generate_until(requests(("Once", {"until": []})))
    assert ours.llama.engine.idle


def test_an_answer_that_fails_is_an_error(ours: LlamaLM, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = ours.llama.model.norm.weight
    monkeypatch.setattr(weight, "data", torch.full_like(weight, float("nan")))
    with pytest.raises(FloatingPointError):
        ours.generate_until(requests(("Once", {"until": []})))
    assert ours.llama.engine.idle


# Being found


@pytest.mark.slow
def test_lm_eval_knows_it_beside_its_own() -> None:
    script = """
import llama, llama.cli, llama.evaluation.evaluate, sys
assert "lm_eval" not in sys.modules
import llama.evaluation.lm_eval_model
from lm_eval.api.registry import get_model
print(get_model("llama").__name__, get_model("dummy").__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["LlamaLM", "DummyLM"], done.stderr


def test_the_arguments_of_lm_evals_command() -> None:
    text = f"path={TINY},dtype=bfloat16,max_seq_len=96,batch_tokens=10"
    given = {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    model = get_model("llama").create_from_arg_string(text, given)
    assert (model.max_length, model.batch_tokens) == (96, 10)
    assert model.llama.engine.max_batch_size == 2
    assert model.llama.model.norm.weight.dtype == torch.bfloat16
    assert model.prefix_token_id == model.llama.tokenizer.bos_id
    assert model.eot_token_id == model.llama.tokenizer.eos_id
    assert "/" not in model.tokenizer_name


def test_what_lm_evals_command_says_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    build = Llama.build

    def noting(path: str, *args: Any, **settings: Any) -> Llama:
        asked.append((settings["max_batch_size"], settings["device"]))
        return build(path, *args, **{**settings, "device": "cpu"})

    monkeypatch.setattr(Llama, "build", noting)
    LlamaLM(str(TINY), device="cuda:0", batch_size="auto:4")
    LlamaLM(str(TINY), device="cuda:1", batch_size="auto", max_batch_size=5)
    LlamaLM(str(TINY), batch_size="3")
    assert asked == [(None, None), (5, "cuda:1"), (3, None)]


def test_unknown_tasks(tasks: Path, only_ours: None) -> None:
    with pytest.raises(ValueError, match=r"no task 'local_nothing' in lm-eval nor in .*tasks"):
        find_tasks(["local_choice", "local_nothing"], str(tasks))


def test_llama_eval_runs_tasks(
    tasks: Path, only_ours: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "local_choice,local_text"
    where = {"include_path": str(tasks), "device": "cpu", "output": str(tmp_path / "out.json")}
    evaluate(str(TINY), tasks=names, limit=2, num_fewshot=0, batch_tokens=64, **where)
    found = json.loads((tmp_path / "out.json").read_text())["tasks"]
    assert set(found) == {"local_choice", "local_text"}
    assert found["local_choice"]["acc,none"] in (0, 0.5, 1)
    assert "|local_choice|Yaml" in capsys.readouterr().out


def test_llama_eval_asks_as_it_is_told(
    tasks: Path, only_ours: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answer = LlamaLM.generate_until

    def noting(model: LlamaLM, requests: list[Instance]) -> list[str]:
        asked.extend(request.args[0] for request in requests)
        return answer(model, requests)

    monkeypatch.setattr(LlamaLM, "generate_until", noting)
    for settings in ({}, {"chat": True}, {"num_fewshot": 1}):
        where = {"include_path": str(tasks), "device": "cpu", **settings}
        evaluate(str(TINY), tasks="local_answer", limit=1, **where)
    plain, spelled, after_another = asked
    assert plain == PROMPTS[0]
    assert any(after_another.startswith(prompt) for prompt in PROMPTS[1:])
    assert after_another.endswith(f"\n\n{PROMPTS[0]}")
    assert spelled.startswith("<|begin_of_text|><|start_header_id|>user<|end_header_id|>")


def test_helping_ranks_are_silent(
    ours: LlamaLM,
    tasks: Path,
    only_ours: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lm_eval_model.console, "is_main", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    manager = find_tasks(["local_choice"], str(tasks))
    assert lm_eval_model.run_tasks(ours.llama, ["local_choice"], manager) == ({}, "")
    ours.loglikelihood(requests(("a", "b")))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_lm_evals_command_on_two_ranks(tasks: Path, run: Callable, ours: LlamaLM) -> None:
    ranks = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    arguments = ["--model", "llama", "--model_args", f"path={TINY},dtype=float32"]
    arguments += ["--tasks", "local_choice", "--include_path", str(tasks)]
    done = subprocess.run(
        [sys.executable, "-m", *ranks, "llama.evaluation.lm_eval_model", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    figures, _ = run(ours, "local_choice")
    rows = [line.split("|") for line in done.stdout.splitlines() if "|acc" in line]
    assert [float(row[7]) for row in rows] == [
        pytest.approx(figures[name], abs=1e-4) for name in ("acc,none", "acc_norm,none")
    ]
