"""Scores against whole forward passes, row by row; windows, batches and limits at their edges."""

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from fixtures import SENTENCES, tiny_args

from llama import ChatFormat, Llama, Tokenizer, Transformer
from llama.engine.sampling import NonFiniteLogitsError
from llama.evaluation import scoring
from llama.evaluation.scoring import Question, log_likelihoods, score_choices, score_texts

TINY = Path(__file__).parents[2] / "params" / "tiny"
TEXTS = [*SENTENCES[:4], "dog", "Crème brûlée, 123 times", "a b c " * 7]


@torch.no_grad()
def by_hand(model: Transformer, ids: Sequence[int], count: int) -> tuple[list[float], bool]:
    """Log-probabilities of the last `count` ids, and whether each is the most likely one."""
    logits = model(torch.tensor([list(ids[:-1])]))[0, -count:].double()
    wanted = torch.tensor(ids[-count:])
    scores = logits.log_softmax(-1).gather(1, wanted.unsqueeze(1))
    return scores.flatten().tolist(), bool((logits.argmax(-1) == wanted).all())


def nats_by_hand(model: Transformer, windows: Sequence[Sequence[int]]) -> float:
    return -sum(sum(by_hand(model, ids, len(ids) - 1)[0]) for ids in windows)


@pytest.fixture
def seen(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the batches that the model reads."""
    shapes, hidden = [], llama.model.hidden

    def noting(tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        shapes.append(tuple(tokens.shape))
        return hidden(tokens, *rest)

    monkeypatch.setattr(llama.model, "hidden", noting)
    return shapes


# Texts


@pytest.mark.parametrize("batch_tokens", [1, 70, 4096])
def test_texts_are_scored_each_alone_after_begin_of_text(llama: Llama, batch_tokens: int) -> None:
    ids = [llama.tokenizer.encode(text, bos=True) for text in TEXTS]
    windows = [row[start : start + 65] for row in ids for start in range(0, len(row) - 1, 64)]
    score = score_texts(llama.model, llama.tokenizer, TEXTS, batch_tokens)
    assert score.nats == pytest.approx(nats_by_hand(llama.model, windows), rel=1e-5)
    assert score.tokens == sum(map(len, ids)) - len(TEXTS)
    assert score.bytes == len("".join(TEXTS).encode())
    assert score.perplexity == pytest.approx(math.exp(score.nats / score.tokens))
    assert score.bits_per_byte == pytest.approx(score.nats / math.log(2) / score.bytes)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 129])
def test_long_texts_are_read_in_windows_that_share_a_token(llama: Llama, count: int) -> None:
    """Of 129 tokens after B, the windows read B 1..63, 64..127 and 128."""
    text = " a" * count
    ids = llama.tokenizer.encode(text, bos=True)
    assert len(ids) == count + 1
    cuts = [ids[:65], ids[64:129], ids[128:]]
    score = score_texts(llama.model, llama.tokenizer, [text])
    expected = nats_by_hand(llama.model, [window for window in cuts if len(window) > 1])
    assert score.nats == pytest.approx(expected, rel=1e-5)
    assert score.tokens == count


def test_a_model_that_knows_nothing(tokenizer: Tokenizer) -> None:
    model = Transformer(tiny_args(vocab_size=tokenizer.n_words))
    model.output.weight.data.zero_()
    score = score_texts(model, tokenizer, ["hello world"])
    assert score.perplexity == pytest.approx(tokenizer.n_words)
    tokens = len(tokenizer.encode("hello world"))
    assert score.bits_per_byte == pytest.approx(tokens * math.log2(tokenizer.n_words) / 11)


def test_a_perplexity_beyond_all_numbers_is_infinite() -> None:
    assert scoring.TextScore(nats=1e6, tokens=10, bytes=10).perplexity == math.inf


def test_half_a_surrogate_pair_counts_as_what_it_is_read_as(llama: Llama) -> None:
    half, read = (score_texts(llama.model, llama.tokenizer, [c]) for c in ("\ud800", "\ufffd"))
    assert half == read


def test_texts_that_cannot_be_scored(llama: Llama) -> None:
    for nothing in ([], [""]):
        with pytest.raises(ValueError, match="no text to score"):
            score_texts(llama.model, llama.tokenizer, nothing)
    with pytest.raises(TypeError, match="list of strings"):
        score_texts(llama.model, llama.tokenizer, "a text")
    with pytest.raises(ValueError, match="batch_tokens=0 should be 1 or more"):
        score_texts(llama.model, llama.tokenizer, ["a text"], 0)


def test_a_broken_model_is_no_score(llama: Llama) -> None:
    llama.model.norm.weight.data[3] = math.nan
    with pytest.raises(NonFiniteLogitsError):
        score_texts(llama.model, llama.tokenizer, ["a text"])


def test_nothing_of_it_keeps_gradients_or_changes_the_model(llama: Llama) -> None:
    llama.model.train()
    graphs: list[bool] = []
    llama.model.output.register_forward_hook(lambda _, x, y: graphs.append(y.requires_grad))
    score_texts(llama.model, llama.tokenizer, ["a text"])
    assert graphs == [False]
    assert llama.model.training
    assert llama.model.cache is None
    assert all(weight.grad is None for weight in llama.model.parameters())


# Batches and memory


def test_rows_of_similar_length_run_together(llama: Llama, seen: list[tuple[int, ...]]) -> None:
    texts = [" a" * n for n in (33, 1, 60, 2, 32, 34, 3)]
    score_texts(llama.model, llama.tokenizer, texts, batch_tokens=128)
    assert seen == [(2, 64), (2, 64), (3, 32)]


def test_a_row_that_is_too_long_runs_alone(llama: Llama, seen: list[tuple[int, ...]]) -> None:
    score_texts(llama.model, llama.tokenizer, [" a" * 60, "b"], batch_tokens=33)
    assert seen == [(1, 64), (1, 32)]


def test_logits_are_made_a_few_at_a_time(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score_texts(llama.model, llama.tokenizer, TEXTS)
    rows: list[int] = []
    llama.model.output.register_forward_hook(lambda _, x, y: rows.append(len(x[0])))
    monkeypatch.setattr(scoring, "_MAX_LOGITS", 5 * llama.model.vocab_size + 1)
    assert score_texts(llama.model, llama.tokenizer, TEXTS).nats == pytest.approx(whole.nats)
    assert max(rows) == 5
    assert sum(rows) == whole.tokens
    monkeypatch.setattr(scoring, "_MAX_LOGITS", 1)
    assert score_texts(llama.model, llama.tokenizer, ["ab"]).tokens == 2


def test_logits_are_made_of_continuations_only(llama: Llama) -> None:
    rows: list[int] = []
    llama.model.output.register_forward_hook(lambda _, x, y: rows.append(len(x[0])))
    log_likelihoods(llama.model, [([1, 2, 3, 4], [5, 6]), ([1] * 30, [7])])
    assert rows == [3]


# Log-likelihoods


def test_log_likelihoods_of_continuations(llama: Llama) -> None:
    ids = [llama.tokenizer.encode(text, bos=True)[:60] for text in TEXTS]
    pairs = [(row[:n], row[n:]) for row in ids for n in (1, len(row) // 2, len(row) - 1)]
    for batch_tokens in (1, 100, 4096):
        found = log_likelihoods(llama.model, pairs, batch_tokens)
        for (context, continuation), one in zip(pairs, found, strict=True):
            scores, _ = by_hand(llama.model, context + continuation, len(continuation))
            assert one.total == pytest.approx(sum(scores), rel=1e-5)
            assert one.cut == 0


def test_what_greedy_decoding_writes_is_greedy(llama: Llama) -> None:
    prompt = llama.tokenizer.encode("Once upon a time", bos=True)
    (written,), _ = llama.generate([prompt], max_gen_len=6, temperature=0)
    others = [[*written[:i], (written[i] + 1) % 300, *written[i + 1 :]] for i in range(6)]
    found = log_likelihoods(llama.model, [(prompt, written), *((prompt, o) for o in others)])
    assert [one.is_greedy for one in found] == [True] + [False] * 6


def test_inputs_that_are_the_same_are_read_once(llama: Llama, seen: list[tuple[int, ...]]) -> None:
    """The choices A, B, C, D; the same twice; and the same input, divided elsewhere."""
    context = [1, 2, 3, 4, 5]
    pairs = [(context, [n]) for n in (10, 11, 12, 13, 11)] + [(context[:2], [3, 4, 5, 12])]
    found = log_likelihoods(llama.model, pairs)
    assert seen.pop() == (1, 32)
    assert not seen
    for (start, rest), one in zip(pairs, found, strict=True):
        scores, greedy = by_hand(llama.model, start + rest, len(rest))
        assert one == (pytest.approx(sum(scores), rel=1e-5), greedy, 0)


def test_contexts_that_are_the_same_before_other_continuations(llama: Llama) -> None:
    pairs = [([1, 2, 3], [4, 5]), ([1, 2, 3], [6, 5]), ([1, 2, 3], [4])]
    found = log_likelihoods(llama.model, pairs)
    for (start, rest), one in zip(pairs, found, strict=True):
        assert one.total == pytest.approx(sum(by_hand(llama.model, start + rest, len(rest))[0]))


def test_the_oldest_tokens_of_what_is_too_long_are_left_out(
    llama: Llama, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [1 + i % 250 for i in range(100)]
    fits = (ids[:60], ids[60:65])
    longer = (ids[:61], ids[61:66])
    much_longer = (ids[:95], ids[95:])
    all_answer = (ids[:3], ids[3:67])
    found = log_likelihoods(llama.model, [fits, longer, much_longer, all_answer])
    expected = [ids[:65], ids[1:66], ids[35:], ids[2:67]]
    for one, kept, n in zip(found, expected, (5, 5, 5, 64), strict=True):
        assert one.total == pytest.approx(sum(by_hand(llama.model, kept, n)[0]), rel=1e-5)
    assert [one.cut for one in found] == [0, 1, 35, 2]
    assert capsys.readouterr().err == (
        "3 of 4 inputs do not fit the context of 64 tokens: their oldest tokens are left out, "
        "38 in all and 35 of the longest\n"
    )
    log_likelihoods(llama.model, [fits])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (([], [1]), r"pairs\[1\] has an empty context"),
        (([1], []), r"pairs\[1\] has an empty continuation"),
        (([1], [2] * 65), r"continuation of pairs\[1\] has 65 tokens, but the context is 64"),
    ],
)
def test_pairs_that_cannot_be_scored(llama: Llama, pair: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_likelihoods(llama.model, [([1], [2]), pair])


def test_no_pairs_are_no_scores(llama: Llama) -> None:
    assert log_likelihoods(llama.model, []) == []


# Multiple choice

QUESTIONS = [
    Question("Once upon a time there was", ["a girl", "the", "123", "é" * 6], 0),
    Question("She liked to", ["play with her dog in the park", "x"], 1),
    Question("One day", ["they saw a ball", "th", "ééé"], 2),
    Question("The dog", ["ran", "said nothing at all, and he ran to the ball"], 1),
    Question("", ["hello world", "12"], 0),
]


def expected_accuracies(model: Transformer, pairs: list[list[tuple[list[int], list[int]]]]) -> dict:
    """As numpy and statistics have them, from likelihoods by hand."""
    right, right_norm = [], []
    for question, choices in zip(QUESTIONS, pairs, strict=True):
        totals = torch.tensor([sum(by_hand(model, a + b, len(b))[0]) for a, b in choices])
        sizes = torch.tensor([len(choice.encode()) for choice in question.choices])
        right.append(float(totals.argmax() == question.answer))
        right_norm.append(float((totals / sizes).argmax() == question.answer))
    n = len(QUESTIONS)
    return {
        "questions": n,
        "acc": statistics.mean(right),
        "acc_stderr": statistics.stdev(right) / n**0.5,
        "acc_norm": statistics.mean(right_norm),
        "acc_norm_stderr": statistics.stdev(right_norm) / n**0.5,
        "cut": 0,
    }


def test_choices_by_their_likelihood_and_by_that_of_a_byte(llama: Llama) -> None:
    encode = llama.tokenizer.encode
    pairs = []
    for question in QUESTIONS:
        start = encode(question.prompt, bos=True)
        space = " " if question.prompt else ""
        wholes = [encode(f"{question.prompt}{space}{c}", bos=True) for c in question.choices]
        pairs.append([(start, whole[len(start) :]) for whole in wholes])
    expected = expected_accuracies(llama.model, pairs)
    assert 0 < expected["acc"] != expected["acc_norm"] < 1
    score = score_choices(llama.model, llama.tokenizer, QUESTIONS)
    assert vars(score) == pytest.approx(expected)


def test_choices_as_answers_in_a_chat(llama: Llama) -> None:
    chat = ChatFormat(llama.tokenizer)
    pairs = []
    for question in QUESTIONS:
        prompt = chat.encode_dialog_prompt([{"role": "user", "content": question.prompt}])
        pairs.append([(prompt, llama.tokenizer.encode(choice)) for choice in question.choices])
    expected = expected_accuracies(llama.model, pairs)
    score = score_choices(llama.model, llama.tokenizer, QUESTIONS, chat=True)
    assert vars(score) == pytest.approx(expected)


def test_bytes_count_not_characters(tokenizer: Tokenizer) -> None:
    """Of a model that knows nothing, é takes one token as x does, for twice as many bytes."""
    model = Transformer(tiny_args(vocab_size=tokenizer.n_words))
    model.output.weight.data.zero_()
    questions = [Question("a\n", ["xy", "é"], 0), Question("a\n", ["x", "é"], 1)]
    score = score_choices(model, tokenizer, questions)
    assert (score.acc, score.acc_norm) == (0, 0.5)


def test_of_equal_choices_the_first_is_taken(llama: Llama) -> None:
    for answer, share in ((0, 1), (1, 0)):
        questions = [Question("The dog", ["ran", "ran"], answer)]
        score = score_choices(llama.model, llama.tokenizer, questions)
        assert (score.acc, score.acc_norm) == (share, share)
        assert (score.acc_stderr, score.acc_norm_stderr) == (None, None)


@pytest.mark.parametrize(
    ("prompt", "choice"),
    [("The dog", "ran"), ("The dog ", "ran"), ("The dog", " ran"), ("The ", "dog ran")],
)
def test_one_space_between_prompt_and_choice(llama: Llama, prompt: str, choice: str) -> None:
    start, rest = scoring._encode_pair(llama.tokenizer, prompt, choice)
    assert start == llama.tokenizer.encode(prompt.rstrip(), bos=True)
    assert start + rest == llama.tokenizer.encode("The dog ran", bos=True)


def test_white_space_is_kept(llama: Llama) -> None:
    start, rest = scoring._encode_pair(llama.tokenizer, "The dog\n\n", "ran")
    assert start + rest == llama.tokenizer.encode("The dog\n\nran", bos=True)
    start, rest = scoring._encode_pair(llama.tokenizer, "", "ran")
    assert start == [llama.tokenizer.bos_id]
    assert rest == llama.tokenizer.encode("ran")


def test_prompts_that_do_not_fit_are_counted(llama: Llama) -> None:
    long = Question("a b c " * 30, ["a", "b c a"], 0)
    size = len(llama.tokenizer.encode(long.prompt.rstrip() + " b c a", bos=True))
    score = score_choices(llama.model, llama.tokenizer, [long, QUESTIONS[0], long])
    assert score.cut == 2 * (size - 65)


def test_no_questions(llama: Llama) -> None:
    with pytest.raises(ValueError, match="no questions"):
        score_choices(llama.model, llama.tokenizer, [])


# Other weights


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [({"dtype": "bfloat16"}, 2e-3), ({"quantize": "int8"}, 4e-3), ({"quantize": "int4"}, 0.05)],
)
def test_formats_of_weights(settings: dict[str, str], tolerance: float) -> None:
    texts = [f"Once upon a time, {text}" for text in SENTENCES[:5]]
    exact, rounded = (
        score_texts(built.model, built.tokenizer, texts).bits_per_byte
        for built in (Llama.build(TINY, device="cpu", **s) for s in ({}, settings))
    )
    assert exact != rounded
    assert rounded == pytest.approx(exact, abs=tolerance)
