import dataclasses
import hashlib
import itertools
import math
import pickle

import numpy as np
import pytest
import torch

from llama import SamplingParams
from llama.engine.sampling import NonFiniteLogitsError, SamplerState, _adjust, sample

LAST = 1 - 2**-53  # the largest uniform number: points at the last token that is kept
GREEDY = SamplingParams(temperature=0)
PLAIN = SamplingParams(temperature=1, top_p=1)


class FixedState(SamplerState):
    """Draws one fixed uniform number."""

    def __init__(self, params, uniform, prompt_tokens=()):
        super().__init__(params, prompt_tokens)
        self.uniform = uniform

    def draw(self):
        return self.uniform


@pytest.fixture
def one_thread():
    """Small tensors gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_logits(kind, vocab, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(vocab, generator=generator)
    if kind == "peaked":
        return noise * 4
    if kind == "flat":
        return noise * 0.01
    if kind == "tied":
        return (noise * 2).round() / 2
    if kind == "equal":
        return torch.zeros(vocab)
    assert kind == "banned"  # most tokens
    return torch.where(torch.arange(vocab) % 50 == min(3, vocab - 1), noise, -math.inf)


def reference_kept(logits, params):
    """(ids, probabilities) that stay, most likely first: a whole sort, in float64."""
    values = logits.tolist()
    ids = sorted(range(len(values)), key=lambda i: (-values[i], i))
    scores = logits.double()[ids] / params.temperature
    if params.top_k:
        scores, ids = scores[: params.top_k], ids[: params.top_k]
    probs = scores.softmax(-1)
    before = probs.cumsum(-1) - probs
    stays = (before <= params.top_p) & (probs >= params.min_p * probs[0]) & (probs > 0)
    return torch.tensor(ids)[stays], probs[stays]


def drawn(logits, params, uniforms):
    """The token that each uniform number gives, in one batch of equal rows."""
    states = [FixedState(params, uniform) for uniform in uniforms]
    return sample(logits.expand(len(states), -1), states)[0].tolist()


SETTINGS = [
    {"top_p": 0.9},
    {"top_p": 0.9, "temperature": 0.6},
    {"top_p": 0.999, "temperature": 2.0},
    {"top_p": 0.0},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 256},
    {"top_k": 300, "top_p": 0.8},
    {"top_k": 10**30, "top_p": 0.5077},
    {"top_k": 20, "top_p": 0.71, "min_p": 0.3, "temperature": 1.3},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 0.2, "top_p": 0.95},
]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["peaked", "flat", "tied", "equal", "banned"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_nucleus_and_the_draw_are_those_of_a_whole_sort(kind, settings):
    params = SamplingParams(**{"temperature": 1, "top_p": 1, **settings})
    uniforms = [0.0, *torch.linspace(0.01137, 0.98711, 14, dtype=torch.float64).tolist(), LAST]
    # Primes: in float64 the reference may miss a top_p that is met exactly.
    for vocab, seed in ((1, 0), (2, 0), (3, 0), (4, 0), (7, 0), (307, 1), (2111, 2)):
        logits = random_logits(kind, vocab, seed)
        ids, probs = reference_kept(logits, params)
        mass = probs.cumsum(-1)
        places = [int((mass <= u * mass[-1]).sum()) for u in uniforms[:-1]]
        assert drawn(logits, params, uniforms) == [*ids[places].tolist(), ids[-1].item()]


def test_a_token_stays_if_the_mass_before_it_is_exactly_top_p():
    for vocab in (4, 1024):  # sums that float64 and the integers both hold exactly
        params = SamplingParams(temperature=1, top_p=0.5)
        assert drawn(torch.zeros(vocab), params, [LAST]) == [vocab // 2]


def scores_in_one_bucket(vocab):
    """Neighbours in float32, shuffled."""
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(vocab))
    return 1 + order * 2.0**-23


def scores_that_tie(vocab):
    """Of both signs; 0.0 and -0.0 tie as well."""
    return random_logits("peaked", vocab, 5).round()


@pytest.mark.parametrize("logits_of", [scores_in_one_bucket, scores_that_tie, torch.zeros])
@pytest.mark.parametrize("vocab", [5, 509, 2039])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.77, 1 - 2**-53])
def test_tokens_of_similar_scores_are_ranked_exactly(logits_of, vocab, top_p):
    logits = logits_of(vocab)
    ids = sorted(range(vocab), key=lambda i: (-logits[i].item(), i))
    # So hot that all tokens weigh the same: where the nucleus ends is a matter of counting.
    params = SamplingParams(temperature=1e308, top_p=top_p)
    kept = ids[: min(math.floor(top_p * vocab) + 1, vocab)]
    picks = range(0, len(kept), 1 + len(kept) // 100)
    uniforms = [(i + 0.5) / len(kept) for i in picks]
    assert drawn(logits, params, [0.0, *uniforms, LAST]) == [
        kept[0],
        *(kept[i] for i in picks),
        kept[-1],
    ]


@pytest.mark.parametrize("settings", [s for s in SETTINGS if s.get("top_p") != 0], ids=str)
def test_weights_that_differ_inside_one_bucket(settings):
    logits, temperature = scores_in_one_bucket(2039), 2.0**-15
    params = SamplingParams(**{"top_p": 1, **settings, "temperature": temperature})
    ids, probs = reference_kept(logits, params)
    mass = probs.cumsum(-1)
    uniforms = torch.linspace(0.01137, 0.98711, 40, dtype=torch.float64)
    expected = ids[torch.searchsorted(mass, uniforms * mass[-1], right=True)].tolist()
    assert drawn(logits, params, uniforms.tolist()) == expected


def test_untruncated_draw_goes_through_the_vocabulary_in_order():
    logits = random_logits("peaked", 500, 0)
    mass = logits.double().softmax(-1).cumsum(-1)
    uniforms = torch.linspace(0.003, 0.997, 200, dtype=torch.float64)
    assert drawn(logits, PLAIN, uniforms.tolist()) == torch.searchsorted(mass, uniforms).tolist()
    banned = random_logits("banned", 500, 0)
    assert drawn(banned, PLAIN, [0.0, LAST]) == [3, 453]


def test_the_worked_example_of_the_module_docstring():
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    params = SamplingParams(temperature=1, top_p=0.7)
    assert drawn(logits, params, [0.0, 0.66, 0.67, 0.8, LAST]) == [0, 0, 1, 1, 1]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("vocab", [400, 5000, 128256])
def test_the_same_tokens_stay_as_in_transformers(vocab):
    hf = pytest.importorskip("transformers.generation.logits_process")
    many = vocab < 10000
    grid = itertools.product((0.6, 1.0, 1.7), (0, 5, 300), (0.3, 0.9, 0.99, 1.0), (0.0, 0.1))
    for seed, (temperature, top_k, top_p, min_p) in enumerate(grid):
        if (top_k, top_p, min_p) == (0, 1.0, 0.0) or not (many or seed % 12 == 4):
            continue
        logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed)) * (
            1 + seed % 4
        )
        scores = hf.TemperatureLogitsWarper(temperature)(None, logits)
        if top_k:
            scores = hf.TopKLogitsWarper(top_k)(None, scores)
        scores = hf.TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
        scores = hf.MinPLogitsWarper(min_p)(None, scores) if min_p else scores
        kept = (scores[0] > -math.inf).nonzero().flatten()
        params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        # What stays is a prefix of the sorted tokens: its last one tells the whole set.
        assert drawn(logits[0], params, [LAST]) == [kept[logits[0, kept].argmin()].item()]


def test_repetition_penalty_is_that_of_transformers():
    hf = pytest.importorskip("transformers.generation.logits_process")
    logits = random_logits("peaked", 50, 3)[None]
    prompt, answer = [3, 4, 5, 5, 20, 21], [7, 3, 7]
    expected = hf.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([prompt + answer]), logits)
    params = SamplingParams(temperature=1, top_p=1, repetition_penalty=1.3)
    state = SamplerState(params, prompt)
    for token in answer:
        state.record(token)
    torch.testing.assert_close(_adjust(logits, [state]), expected)


def test_penalties_by_hand():
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5, 3.0, -1.0]])
    params = SamplingParams(
        repetition_penalty=2,
        frequency_penalty=0.5,
        presence_penalty=0.25,
        logit_bias={3: 1.5, 4: -math.inf, 1: 10},
    )
    state = SamplerState(params, [0, 1, 0])  # the prompt: only the repetition penalty counts it
    assert _adjust(logits, [state]).tolist() == [[1.0, 6.0, 1.0, 2.0, -math.inf, -1.0]]
    for token in (2, 5, 2, 1):
        state.record(token)
    # 1: -2 * 2 + 10 - 0.75; 2: 1 / 2 - 2 * 0.5 - 0.25; 5: -1 * 2 - 0.75
    assert _adjust(logits, [state]).tolist() == [[1.0, 5.25, -0.75, 2.0, -math.inf, -2.75]]


def test_penalties_and_bias_change_what_is_drawn():
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0]])
    state = SamplerState(dataclasses.replace(GREEDY, frequency_penalty=0.75))
    chosen = []
    for _ in range(8):
        chosen.append(sample(logits, [state])[0].item())
        state.record(chosen[-1])
    # 5, 4.25, then 3.5 against 4, 3.25; 2.75 against 3 ...
    assert chosen == [0, 0, 1, 0, 1, 2, 0, 1]
    state = SamplerState(dataclasses.replace(GREEDY, presence_penalty=1.5))
    state.record(0)
    state.record(0)
    assert sample(logits, [state])[0].tolist() == [1]
    state = SamplerState(SamplingParams(logit_bias={0: -math.inf, 2: -math.inf, 3: -1e308}))
    assert {sample(logits, [state])[0].item() for _ in range(50)} == {1}
    state = SamplerState(SamplingParams(logit_bias={3: 1e308}))
    assert sample(logits, [state])[0].tolist() == [3]


def test_history_is_recorded_by_record_alone():
    params = SamplingParams(frequency_penalty=1.0, repetition_penalty=1.5, logit_bias={2: 1.0})
    state = SamplerState(params, [1, 2])
    before = state.adjustments.clone()
    sample(torch.randn(1, 8), [state])
    assert torch.equal(state.adjustments, before)
    without = SamplerState(SamplingParams(), [1, 2])
    without.record(5)
    assert len(without.adjustments) == 0  # nothing is kept that no setting needs


def mixed_batch(vocab):
    """Rows of every kind: greedy, plain, small and large nuclei, ties, penalties, bias."""
    kinds = ["peaked", "flat", "tied", "equal", "peaked", "banned", "flat", "peaked", "peaked"]
    logits = torch.stack([random_logits(kind, vocab, i) for i, kind in enumerate(kinds)])
    settings = [
        {},
        {"top_p": 0.95},
        {"top_k": 300},
        {"top_p": 0.5},
        {"temperature": 0},
        {"temperature": 3.0},
        {"temperature": 1, "top_p": 1},
        {"repetition_penalty": 1.4, "frequency_penalty": 0.5, "top_p": 0.99},
        {"temperature": 0, "logit_bias": {5: 50.0}},
    ]
    return logits, [SamplingParams(**s, seed=i) for i, s in enumerate(settings)]


@pytest.mark.parametrize("vocab", [5000, 50000])  # drawn together on the CPU, and in parts
def test_a_row_in_a_batch_gets_what_it_gets_alone(vocab):
    logits, params = mixed_batch(vocab)
    together = [SamplerState(p, [1, 2, 3]) for p in params]
    alone = [SamplerState(p, [1, 2, 3]) for p in params]
    for _ in range(10):
        tokens, logprobs = sample(logits, together)
        for i, state in enumerate(alone):
            token, logprob = sample(logits[i : i + 1], [state])
            assert (token.item(), logprob.item()) == (tokens[i].item(), logprobs[i].item())
            state.record(token.item())
            together[i].record(token.item())
    backwards, _ = sample(logits.flip(0), together[::-1])
    assert backwards.flip(0).tolist() == [
        sample(logits[i : i + 1], [state])[0].item() for i, state in enumerate(alone)
    ]


def test_frequencies_over_many_seeds():
    probs = torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04], dtype=torch.float64)
    logits = probs.log().float() + 3
    count = 4000
    for top_p, expected in ((1.0, probs), (0.8, probs * torch.tensor([1, 1, 1, 0, 0]) / 0.9)):
        params = [SamplingParams(temperature=1, top_p=top_p, seed=seed) for seed in range(count)]
        states = [SamplerState(p) for p in params]
        for _ in range(2):  # the first numbers of neighbouring seeds, and the second ones
            tokens, _ = sample(logits.expand(count, -1), states)
            found = tokens.bincount(minlength=5)
            assert not found[expected == 0].any()
            chi2 = ((found - count * expected) ** 2 / (count * expected)).nansum()
            assert chi2 < 18.5  # 0.1 % of honest draws with 4 degrees of freedom are above


def test_a_seed_repeats_its_tokens_and_leaves_the_global_generator_alone():
    logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))

    def tokens(seed):
        state = SamplerState(SamplingParams(seed=seed, temperature=1.0))
        return [sample(logits, [state])[0].item() for _ in range(20)], state.seed

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, _ = tokens(5)
    unseeded, its_seed = tokens(None)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert tokens(5)[0] == first
    assert tokens(6)[0] != first
    assert tokens(None)[0] != unseeded
    assert tokens(its_seed)[0] == unseeded


def test_seed_prompt_and_sample_index_each_change_the_draws():
    states = [
        SamplerState(SamplingParams(seed=seed), prompt, index)
        for seed in (0, 1, 2**32, -1)
        for prompt in ([], [1], [1, 2], [2, 1], [12])
        for index in (0, 1)
    ]
    assert len({state.draw() for state in states}) == len(states)


@pytest.mark.parametrize("kind", ["peaked", "flat", "equal"])
def test_each_token_takes_one_number_of_the_stream(kind):
    for params in (PLAIN, SamplingParams(), SamplingParams(top_k=3)):
        state = SamplerState(dataclasses.replace(params, seed=9))
        sample(random_logits(kind, 3000, 0)[None], [state])
        fresh = SamplerState(dataclasses.replace(params, seed=9))
        assert state.draw() == fresh.draw()  # the same until a token is recorded
        state.record(0)
        assert state.draw() != fresh.draw()
        fresh.record(0)
        assert state.draw() == fresh.draw()
    seed = int.from_bytes(hashlib.blake2b(b"(9, 0, 1, 2)", digest_size=8).digest(), "little")
    numbers = torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    fresh = SamplerState(SamplingParams(seed=9), [1, 2])
    assert [(fresh.draw(), fresh.record(0))[0] for _ in range(3)] == numbers.tolist()
    state = SamplerState(dataclasses.replace(GREEDY, seed=9))
    sample(torch.randn(1, 9), [state])
    assert state.draw() == SamplerState(dataclasses.replace(GREEDY, seed=9)).draw()


def test_greedy_takes_the_first_largest():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [3.0, -math.inf, 2.9, 3.0]])
    tokens, _ = sample(logits, [SamplerState(GREEDY), SamplerState(GREEDY)])
    assert tokens.tolist() == [1, 0]
    assert tokens.dtype == torch.int64


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_extreme_temperatures_and_logits(top_p):
    logits = torch.tensor([1e30, 3.0, 1e30 * (1 + 1e-6), -3e38, -math.inf])
    for temperature in (5e-324, 1e-30, 1e-5, 1):
        params = SamplingParams(temperature=temperature, top_p=top_p)
        assert drawn(logits, params, [0.0, 0.5, LAST]) == [2, 2, 2]
    ordinary = torch.tensor([3.0, 1.0, 2.0, -math.inf])
    params = SamplingParams(temperature=1e308, top_p=top_p)
    assert sorted(drawn(ordinary, params, [0.1, 0.5, 0.9])) == [0, 1, 2]


def test_logprobs_are_the_models_own():
    logits, params = mixed_batch(700)
    biased = dataclasses.replace(params[0], temperature=0.1, logit_bias={9: 100.0})
    states = [SamplerState(p, [1, 2]) for p in [biased, *params[1:]]]
    tokens, logprobs = sample(logits, states)
    assert tokens[0] == 9
    expected = logits.double().log_softmax(-1)[range(len(states)), tokens]
    torch.testing.assert_close(logprobs.double(), expected, rtol=1e-6, atol=1e-6)
    assert logprobs.dtype == torch.float32


def test_logits_are_not_changed():
    logits, params = mixed_batch(700)
    before = logits.clone()
    sample(logits, [SamplerState(p, [1, 2]) for p in params])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("params", [GREEDY, PLAIN, SamplingParams(), SamplingParams(top_k=3)])
def test_logits_that_are_not_finite(value, params):
    logits = torch.zeros(4, 1000)
    logits[1, 999] = logits[3, 0] = value
    states = [SamplerState(params) for _ in range(4)]
    with pytest.raises(NonFiniteLogitsError, match=r"\[1, 3\].*checkpoint.*bfloat16") as caught:
        sample(logits, states)
    assert caught.value.rows == [1, 3]
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(NonFiniteLogitsError, match=r"\[0\]"):
        sample(torch.full((1, 5), -math.inf), states[:1])


@pytest.mark.parametrize("params", [GREEDY, PLAIN, SamplingParams()])
def test_banning_every_token_is_the_requests_mistake(params):
    banned = dataclasses.replace(params, logit_bias=dict.fromkeys(range(6), -math.inf))
    with pytest.raises(ValueError, match=r"ban every token .* rows \[1\]"):
        sample(torch.zeros(2, 6), [SamplerState(params), SamplerState(banned)])


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("temperature", [-0.1, math.nan, math.inf, 10**400]),
        ("top_p", [-0.1, 1.01, math.nan]),
        ("top_k", [-1]),
        ("min_p", [-0.1, 1.01, math.nan]),
        ("repetition_penalty", [0, -1.0, math.nan, math.inf]),
        ("frequency_penalty", [math.nan, math.inf, -math.inf]),
        ("presence_penalty", [math.nan, math.inf, -math.inf]),
        ("logit_bias", [{1: math.nan}, {1: math.inf}, {-1: 0.0}]),
        ("seed", [2**64, -(2**63) - 1]),
    ],
)
def test_values_out_of_range(name, bad):
    for value in bad:
        with pytest.raises(ValueError, match=f"{name}.* must be .*, got ") as caught:
            SamplingParams(**{name: value})
        shown = {-1, *value.values()} if isinstance(value, dict) else {value}
        assert any(str(caught.value).endswith(f"got {x!r}") for x in shown)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(SamplingParams)])
def test_values_of_a_wrong_type(name):
    bad = ["1", True, [1]] + ([1.5] if name in ("top_k", "seed") else [])
    if name == "logit_bias":
        bad += [{"1": 1.0}, {1: "1"}, {True: 1.0}, {1: True}, {1.0: 1.0}]
    for value in bad:
        with pytest.raises(TypeError, match=name):
            SamplingParams(**{name: value})


def test_the_edges_of_the_ranges_are_allowed():
    for settings in (
        {"temperature": 0, "top_p": 0, "top_k": 0, "min_p": 0, "seed": -(2**63)},
        {"temperature": 1, "top_p": 1, "top_k": 1, "min_p": 1, "seed": 2**64 - 1},
        {"logit_bias": {0: -math.inf}, "frequency_penalty": -2, "presence_penalty": -2},
    ):
        params = SamplingParams(**settings)
        assert pickle.loads(pickle.dumps(params)) == params
        hash(params)
        sample(torch.zeros(1, 4), [SamplerState(params)])


def test_none_is_off_and_numpy_numbers_are_numbers():
    off = SamplingParams(top_p=1, logit_bias={})
    names = [f.name for f in dataclasses.fields(off) if f.name != "temperature"]
    assert SamplingParams(**dict.fromkeys(names)) == off
    with pytest.raises(TypeError, match="temperature must be a number, got None"):
        SamplingParams(temperature=None)
    params = SamplingParams(
        temperature=np.float32(0.5), top_k=np.int64(3), seed=np.int32(7), logit_bias={np.int8(1): 1}
    )
    assert params == SamplingParams(temperature=0.5, top_k=3, seed=7, logit_bias={1: 1.0})
    sample(torch.zeros(1, 4), [SamplerState(params, [1])])


def test_logit_bias_is_a_copy():
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[2] = math.nan
    assert params.logit_bias == {1: 2.0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_tokens_of_the_cpu():
    logits, params = mixed_batch(128256)
    results = []
    for device in ("cpu", "cuda"):
        states = [SamplerState(p, [1, 2, 3]) for p in params]
        steps = []
        for _ in range(5):
            tokens, logprobs = sample(logits.to(device), states)
            assert tokens.device.type == logprobs.device.type == device
            steps.append(tokens.tolist())
            for state, token in zip(states, steps[-1], strict=True):
                state.record(token)
        results.append((steps, logprobs.cpu()))
    assert results[0][0] == results[1][0]
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-5)
    with pytest.raises(NonFiniteLogitsError):
        sample(torch.full((1, 9), math.nan, device="cuda"), [SamplerState(GREEDY)])
