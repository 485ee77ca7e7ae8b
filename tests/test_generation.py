import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import run_ranks, write_sentencepiece, write_tiktoken

from llama import Llama, Tokenizer
from llama.engine.sampling import NonFiniteLogitsError
from llama.errors import InputTypeError

TEXTS = ["Once upon a time", "Hi", "the the world of hello", "123", "héllo wörld \U0001f642", "x"]
DIALOG = [{"role": "user", "content": "Hi"}]
Chain = Callable[..., Llama]


def ids(model: Llama, texts: list[str] = TEXTS) -> list[list[int]]:
    return [model.tokenizer.encode(text, bos=True) for text in texts]


def whole_logprobs(model: Llama, tokens: list[int]) -> list[float]:
    """The log-probability of each token after the first, by one pass without a cache."""
    with torch.no_grad():
        scores = model.model(torch.tensor([tokens]))[0].log_softmax(-1)
    return scores[range(len(tokens) - 1), tokens[1:]].tolist()


def test_greedy_tokens_are_the_likeliest_of_a_whole_forward_pass(llama: Llama) -> None:
    prompts = ids(llama)
    tokens, logprobs = llama.generate(prompts, 20, temperature=0, logprobs=True)
    assert logprobs is not None
    for prompt, answer, scores in zip(prompts, tokens, logprobs, strict=True):
        whole = prompt + answer
        with torch.no_grad():
            best = llama.model(torch.tensor([whole]))[0].argmax(-1).tolist()
        assert answer == best[len(prompt) - 1 : -1]
        assert scores == pytest.approx(whole_logprobs(llama, whole)[len(prompt) - 1 :], abs=1e-4)
    assert sum(map(len, tokens)) > 40


@pytest.mark.parametrize("chunk", [256, 5, 1])
def test_echo_scores_every_prompt_token(llama: Llama, chunk: int) -> None:
    llama.engine._runner.chunk = chunk
    prompts = ids(llama)
    tokens, logprobs = llama.generate(prompts, 6, logprobs=True, echo=True)
    assert logprobs is not None
    for prompt, whole, scores in zip(prompts, tokens, logprobs, strict=True):
        assert whole[: len(prompt)] == prompt
        assert len(scores) == len(whole)
        assert scores[0] == 0.0
        assert scores[1:] == pytest.approx(whole_logprobs(llama, whole), abs=1e-4)


def test_echo_scores_prompts_that_all_fill_the_context(llama: Llama) -> None:
    prompts = [[1 + i] + [40 + i, 7] * 31 + [i] for i in range(4)]
    tokens, logprobs = llama.generate(prompts, 5, logprobs=True, echo=True)
    assert tokens == prompts
    assert logprobs is not None
    for prompt, scores in zip(prompts, logprobs, strict=True):
        assert scores == pytest.approx([0.0, *whole_logprobs(llama, prompt)], abs=1e-4)


def test_no_length_scores_and_generates_nothing(llama: Llama) -> None:
    prompts = ids(llama)
    result = llama.generate(prompts, 0, logprobs=True, echo=True)
    tokens, logprobs = result
    assert tokens == prompts
    assert logprobs is not None
    assert logprobs[0] == pytest.approx([0.0, *whole_logprobs(llama, prompts[0])], abs=1e-4)
    assert result.finish_reason == ["length"] * len(prompts)
    assert llama.generate(prompts, 0, logprobs=True) == ([[]] * 6, [[]] * 6)
    assert llama.text_completion(["Hi"], max_gen_len=0) == [
        {"generation": "", "finish_reason": "length"}
    ]


def test_a_prompt_of_exactly_the_context_gets_no_token_and_one_less_gets_one(
    chain: Chain, tokenizer: Tokenizer
) -> None:
    a, b = tokenizer.encode("ab")
    model = chain([a, b], max_seq_len=16)
    result = model.generate([[a] * 16, [a] * 15], temperature=0)
    assert result == ([[], [b]], None)
    assert result.finish_reason == ["length", "length"]


def test_one_prompt_too_long_is_named_and_none_runs(llama: Llama) -> None:
    with pytest.raises(ValueError, match=r"prompt_tokens\[1\] has 65 tokens.* 64 \(max_seq_len\)"):
        llama.generate([[1], [1] * 65, [2]], 4)
    with pytest.raises(ValueError, match=r"prompts\[2\] has \d+ tokens"):
        llama.text_completion(["a", "b", "word " * 99])
    with pytest.raises(ValueError, match=r"dialogs\[0\] has \d+ tokens"):
        llama.chat_completion([[{"role": "user", "content": "word " * 99}]])
    assert llama.engine.idle


def test_stop_tokens_in_a_prompt_end_nothing(chain: Chain, tokenizer: Tokenizer) -> None:
    eot = tokenizer.special_tokens["<|eot_id|>"]
    a, b, c = tokenizer.encode("abc")
    model = chain([a, b, c, eot])
    prompt = [eot, eot, a]
    result = model.generate([prompt], temperature=0, logprobs=True)
    assert result[0] == [[b, c]]
    assert result.finish_reason == ["stop"]
    with_prompt, scores = model.generate([prompt], temperature=0, logprobs=True, echo=True)
    assert with_prompt == [[*prompt, b, c]]
    assert scores is not None
    assert len(scores[0]) == 5


def test_a_stop_token_is_found_at_the_last_place_and_not_one_later(
    chain: Chain, tokenizer: Tokenizer
) -> None:
    a, b, c = tokenizer.encode("abc")
    model = chain([a, b, c, tokenizer.eos_id])
    assert model.generate([[a]], 3, temperature=0).finish_reason == ["stop"]
    short = model.generate([[a]], 2, temperature=0)
    assert (short[0], short.finish_reason) == ([[b, c]], ["length"])
    assert model.generate([[c]], temperature=0)[0] == [[]]


def test_answers_do_not_depend_on_the_batch(checkpoint: Path) -> None:
    def build(rows: int) -> Llama:
        return Llama.build(checkpoint, max_batch_size=rows, device="cpu", dtype="float32")

    options = {"temperature": 1.0, "top_p": 0.95, "max_gen_len": 24, "logprobs": True}
    together = build(3).text_completion(TEXTS, **options)
    for i, text in enumerate(TEXTS):
        (single,) = build(1).text_completion([text], **options)
        assert single["generation"] == together[i]["generation"]
        assert single["tokens"] == together[i]["tokens"]
        assert single["logprobs"] == pytest.approx(together[i]["logprobs"], abs=1e-4)
        assert single["finish_reason"] == together[i]["finish_reason"]
    backwards = build(2).text_completion(TEXTS[::-1], **options)
    assert [r["generation"] for r in backwards[::-1]] == [r["generation"] for r in together]


def test_seeds(checkpoint: Path) -> None:
    def build(seed: int) -> Llama:
        return Llama.build(checkpoint, seed=seed, device="cpu", dtype="float32")

    def ask(model: Llama, **options: int) -> list[list[int]]:
        return model.generate([[5, 6, 7]] * 3, 12, temperature=1.5, top_p=1.0, **options)[0]

    state = torch.random.get_rng_state()
    one, same, other = build(1), build(1), build(2)
    first = ask(one)
    assert len({tuple(answer) for answer in first}) == 3  # copies of a prompt vary
    assert ask(same) == first
    assert ask(one) != first
    assert ask(other) != first
    assert ask(one, seed=7) == ask(other, seed=7)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_answer_with_a_seed_follows_from_its_prompt(llama: Llama) -> None:
    """Whatever else is in the call; and prompts of one call draw different numbers."""
    llama.model.output.weight.data.zero_()  # all tokens are equally likely after any prompt
    options = {"max_gen_len": 4, "temperature": 1.0, "top_p": 1.0, "seed": 11}
    prompts = [[i, 7] for i in range(24)]
    together = llama.generate(prompts, **options)[0]
    assert len({tuple(answer) for answer in together}) == 24
    assert [llama.generate([prompt], **options)[0][0] for prompt in prompts[:4]] == together[:4]
    mixed = llama.generate([[9], prompts[2], prompts[2], prompts[0]], **options)[0]
    assert (mixed[1], mixed[3]) == (together[2], together[0])
    assert mixed[2] != mixed[1]  # the second copy of a prompt


def test_arguments_in_the_forms_people_have_them_in(llama: Llama) -> None:
    expected = llama.generate([[1, 2], [3, 4]], 3, temperature=0)
    for prompts in (
        iter([iter([1, 2]), (3, 4)]),
        np.array([[1, 2], [3, 4]]),
        torch.tensor([[1, 2], [3, 4]]),
        [np.array([1, 2]), torch.tensor([3, 4])],
        [[np.int64(1), 2], [torch.tensor(3), 4]],
    ):
        assert llama.generate(prompts, np.int64(3), temperature=np.float32(0)) == expected
    off = {"stop": None, "logit_bias": None, "top_k": None, "top_p": None}
    texts = ["Hi", "you"]
    (first, _) = plain = llama.text_completion(texts, max_gen_len=3, temperature=0)
    assert llama.text_completion(iter(texts), max_gen_len=3, temperature=0, **off) == plain
    stops = iter([first["generation"][0]])
    stopped = llama.text_completion(texts[:1] * 2, max_gen_len=3, temperature=0, stop=stops)
    assert [result["generation"] for result in stopped] == ["", ""]
    dialogs = (dialog for dialog in [DIALOG])
    assert llama.chat_completion(dialogs, max_gen_len=3) != []


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_llama_says_why_it_has_no_copy(llama: Llama, duplicate: Callable) -> None:
    with pytest.raises(InputTypeError, match=r"can't be copied or pickled.*call Llama\.build"):
        duplicate(llama)


def test_tokens_of_many_bytes(chain: Chain, tokenizer: Tokenizer) -> None:
    smile = tokenizer.encode("\U0001f642")
    assert len(smile) > 1
    a = tokenizer.encode("a")
    model = chain([*a, *smile, *tokenizer.encode("b"), tokenizer.eos_id])
    (result,) = model.text_completion(["a"], temperature=0, logprobs=True)
    assert result["generation"] == "\U0001f642b"
    assert result["tokens"] == [*[""] * (len(smile) - 1), "\U0001f642", "b"]
    assert len(result["logprobs"]) == len(result["tokens"])
    chunks = [chunk.text for chunk in model.text_completion_stream(["a"], temperature=0)]
    assert [text for text in chunks if text] == ["\U0001f642", "b"]
    (cut,) = model.text_completion(["a"], temperature=0, max_gen_len=1, logprobs=True)
    assert cut["generation"] == "\ufffd" == "".join(cut["tokens"])


def test_echoed_text_begins_with_the_prompt(llama: Llama) -> None:
    for text, result in zip(
        TEXTS, llama.text_completion(TEXTS, max_gen_len=5, echo=True, logprobs=True), strict=True
    ):
        assert result["generation"].startswith("<|begin_of_text|>" + text)
        assert "".join(result["tokens"]) == result["generation"]
        assert len(result["tokens"]) == len(result["logprobs"])


@pytest.mark.parametrize(
    ("stop", "text", "tokens"),
    [
        ("c", "b", ["b"]),
        ("cd", "b", ["b"]),
        ("b", "", []),
        ("ello", "bcdh", ["b", "c", "d", "h"]),
        ("dhel", "bc", ["b", "c"]),
        (["zzz", "lo"], "bcdhel", ["b", "c", "d", "hel"]),
        (["hello", "cd"], "b", ["b"]),
        (["lo", "el"], "bcdh", ["b", "c", "d", "h"]),
        ("hellx", "bcdhello", ["b", "c", "d", "hello"]),
        ("abc", "bcdhello", ["b", "c", "d", "hello"]),
    ],
)
def test_stop_strings(
    chain: Chain, tokenizer: Tokenizer, stop: str | list[str], text: str, tokens: list[str]
) -> None:
    script = [i for part in ("a", "b", "c", "d", "hello") for i in tokenizer.encode(part)]
    model = chain([*script, tokenizer.eos_id])
    (result,) = model.text_completion(["a"], temperature=0, stop=stop, logprobs=True)
    assert result["generation"] == text
    assert result["finish_reason"] == "stop"
    assert result["tokens"] == tokens
    assert len(result["logprobs"]) == len(tokens)
    prompt = tokenizer.encode("a")
    answers, logprobs = model.generate([prompt], temperature=0, stop=stop, logprobs=True)
    assert answers == [script[1 : 1 + len(tokens)]]
    assert logprobs == [result["logprobs"]]
    chunks = list(model.text_completion_stream(["a"], temperature=0, stop=stop))
    assert "".join(chunk.text for chunk in chunks) == text
    assert [chunk.finish_reason for chunk in chunks][-1] == "stop"


def test_a_stream_holds_back_what_may_become_a_stop_string(
    chain: Chain, tokenizer: Tokenizer
) -> None:
    model = chain([*tokenizer.encode("abcd"), tokenizer.eos_id])
    chunks = [c.text for c in model.text_completion_stream(["a"], temperature=0, stop="bcx")]
    assert chunks[0] == "bcd"
    chunks = [c.text for c in model.text_completion_stream(["a"], temperature=0, stop="zz")]
    assert chunks[:3] == ["b", "c", "d"]


def test_streams_yield_what_the_calls_return_as_it_comes(llama: Llama) -> None:
    options = {"temperature": 0.8, "max_gen_len": 10, "seed": 5}
    whole = llama.text_completion(TEXTS, **options)
    texts, reasons = [""] * len(TEXTS), {}
    for chunk in llama.text_completion_stream(TEXTS, **options):
        assert chunk.index not in reasons
        texts[chunk.index] += chunk.text
        if chunk.finish_reason:
            reasons[chunk.index] = chunk.finish_reason
    assert texts == [result["generation"] for result in whole]
    assert [reasons[i] for i in range(len(TEXTS))] == [r["finish_reason"] for r in whole]

    tokens = llama.generate(ids(llama), 10, temperature=0)[0]
    streamed = [""] * len(TEXTS)
    for chunk in llama.generate_stream(ids(llama), 10, temperature=0):
        streamed[chunk.index] += chunk.text
    assert streamed == [llama.tokenizer.decode(answer) for answer in tokens]

    dialog = [{"role": "user", "content": "hello"}]
    (answer,) = llama.chat_completion([dialog], temperature=0, max_gen_len=6)
    joined = "".join(
        chunk.text for chunk in llama.chat_completion_stream([dialog], temperature=0, max_gen_len=6)
    )
    assert joined == answer["generation"]["content"]


def test_a_stream_comes_token_by_token_and_may_be_closed(
    chain: Chain, tokenizer: Tokenizer
) -> None:
    model = chain(tokenizer.encode("abcdefg"))
    stream = model.text_completion_stream(["a"], temperature=0)
    assert next(stream).text == "b"
    (sequence,) = model.engine.running
    assert len(sequence.tokens) == 1
    next(stream)
    stream.close()
    assert sequence.finish_reason == "cancelled"
    assert model.engine.idle
    model.text_completion_stream(["a"])  # one that is never read leaves nothing behind
    assert model.engine.idle


def test_two_streams_at_a_time(chain: Chain, tokenizer: Tokenizer) -> None:
    model = chain([*tokenizer.encode("abcdefg"), tokenizer.eos_id])
    first = model.text_completion_stream(["a"], temperature=0)
    second = model.text_completion_stream(["d"], temperature=0)
    texts = [next(first).text, next(second).text]
    texts[1] += "".join(chunk.text for chunk in second)
    texts[0] += "".join(chunk.text for chunk in first)
    assert texts == ["bcdefg", "efg"]


def test_an_interrupted_call_leaves_no_sequence_behind(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = llama.generate([[1, 2]], 5, temperature=0)
    forward = llama.model.forward
    calls = iter(range(100))

    def interrupt(*args: object, **kwargs: object) -> torch.Tensor:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(llama.model, "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            llama.generate([[3], [4], [5], [6]], 30)
    assert llama.engine.idle
    assert llama.generate([[1, 2]], 5, temperature=0) == expected


def test_nan_in_the_weights_raises_and_leaves_the_engine_usable(llama: Llama) -> None:
    expected = llama.generate([[1, 2], [3]], 5, temperature=0)
    weight = llama.model.tok_embeddings.weight.data
    before = weight.clone()
    weight[7] = float("nan")
    with pytest.raises(NonFiniteLogitsError, match=r"weights.*float16"):
        llama.generate([[1, 2], [7] * 40], 5)
    assert llama.engine.idle
    weight.copy_(before)
    assert llama.generate([[1, 2], [3]], 5, temperature=0) == expected


def test_keys_and_shapes_are_those_of_metas_package(llama: Llama) -> None:
    tokens, logprobs = llama.generate([[1, 2]], 3, 0.6, 0.9, False, False)
    assert logprobs is None
    assert isinstance(tokens[0][0], int)
    (text,) = llama.text_completion(["Hi"], 0.6, 0.9, 3, True, True)
    assert set(text) == {"generation", "tokens", "logprobs", "finish_reason"}
    (text,) = llama.text_completion(["Hi"], max_gen_len=3)
    assert set(text) == {"generation", "finish_reason"}
    dialog = [{"role": "user", "content": "Hi"}]
    (chat,) = llama.chat_completion([dialog], 0.6, 0.9, 3, True)
    assert set(chat) == {"generation", "tokens", "logprobs", "finish_reason"}
    assert chat["generation"]["role"] == "assistant"
    assert "".join(chat["tokens"]) == chat["generation"]["content"]
    assert set(llama.chat_completion([dialog], max_gen_len=3)[0]) == {
        "generation",
        "finish_reason",
    }


def test_chat_prompts_are_the_formatters(chain: Chain, tokenizer: Tokenizer) -> None:
    newlines = tokenizer.encode("\n\n")
    assert len(newlines) == 1  # the last token of every open header
    script = [*newlines, *tokenizer.encode("ok"), tokenizer.special_tokens["<|eot_id|>"]]
    model = chain(script, max_seq_len=64)
    results = model.chat_completion(
        [
            [{"role": "user", "content": "a"}],
            [{"role": "system", "content": "s"}, {"role": "user", "content": "<|eot_id|>"}],
        ],
        temperature=0,
    )
    assert [r["generation"] for r in results] == [{"role": "assistant", "content": "ok"}] * 2
    assert [r["finish_reason"] for r in results] == ["stop", "stop"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.generate([]), ValueError, "prompt_tokens is empty"),
        (lambda m: m.text_completion([]), ValueError, "prompts is empty"),
        (lambda m: m.chat_completion([]), ValueError, "dialogs is empty"),
        (lambda m: m.generate([[1], []]), ValueError, r"prompt_tokens\[1\] is empty"),
        (lambda m: m.text_completion(["a", ""]), ValueError, r"prompts\[1\] is empty"),
        (lambda m: m.chat_completion([[]]), ValueError, r"dialogs\[0\]"),
        (lambda m: m.text_completion("Hi"), TypeError, r"must be a list, .*write \[prompt\]"),
        (lambda m: m.text_completion(None), TypeError, "prompts must be a list, got None"),
        (lambda m: m.text_completion([b"Hi"]), TypeError, r"prompts\[0\] must be a string"),
        (lambda m: m.generate([1, 2]), TypeError, r"must be a list, .*write \[prompt\]"),
        (lambda m: m.generate(torch.tensor([1, 2])), TypeError, r"write \[prompt\]"),
        (lambda m: m.generate([[1], [2, True]]), TypeError, r"prompt_tokens\[1\].*True at index 1"),
        (lambda m: m.generate([[1], "Hi"]), TypeError, r"prompt_tokens\[1\] must be .* ids, got"),
        (lambda m: m.chat_completion(DIALOG), TypeError, r"must be a list, .*write \[dialog\]"),
        (lambda m: m.chat_completion(DIALOG[0]), TypeError, r"write \[dialog\]"),
        (lambda m: m.chat_completion([None]), TypeError, r"dialogs\[0\]: .*got None"),
        (lambda m: m.generate([[1]], temperature=-1), ValueError, "temperature.*-1"),
        (lambda m: m.generate([[1]], top_p=1.5), ValueError, "top_p.*1.5"),
        (lambda m: m.generate([[1]], -3), ValueError, "max_gen_len must .* got -3"),
        (lambda m: m.generate([[1]], True), TypeError, "max_gen_len must be an integer, got True"),
        (lambda m: m.generate([[9999]]), ValueError, r"prompt_tokens\[0\] holds 9999"),
        (lambda m: m.generate([[1]], stop=""), ValueError, "stop strings"),
        (lambda m: m.generate([[1]], stop=5), TypeError, "stop must be a tuple of strings, got 5"),
        (lambda m: m.generate([[1]], topk=3), TypeError, "'topk'; did you mean top_k?"),
        (lambda m: m.generate([[1]], maxgenlen=3), TypeError, "did you mean max_gen_len?"),
        (lambda m: m.generate([[1]], beams=3), TypeError, "'beams'; there are temperature, top_p,"),
        (
            lambda m: m.chat_completion([[{"role": "wizard", "content": "a"}]]),
            ValueError,
            r"dialogs\[0\].*wizard",
        ),
        (lambda m: m.generate_stream([]), ValueError, "prompt_tokens is empty"),
        (lambda m: m.text_completion_stream([""]), ValueError, r"prompts\[0\] is empty"),
    ],
)
def test_wrong_calls(
    llama: Llama, call: Callable[[Llama], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(llama)
    assert llama.engine.idle


def test_build_defaults_to_the_checkpoints_own(checkpoint: Path) -> None:
    built = Llama.build(checkpoint)
    assert built.model.params.max_seq_len == 64
    assert built.tokenizer.n_words == built.model.vocab_size
    small = Llama.build(
        ckpt_dir=str(checkpoint),
        tokenizer_path=str(checkpoint / "tokenizer.model"),
        max_seq_len=16,
        max_batch_size=2,
        model_parallel_size=1,
        seed=3,
    )
    assert (small.engine.max_seq_len, small.engine.max_batch_size) == (16, 2)
    with pytest.warns(UserWarning, match="max_seq_len=65 is more than the 64"):
        Llama.build(checkpoint, max_seq_len=65)


def test_build_takes_a_vocabulary_size_left_to_the_tokenizer(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({**params, "vocab_size": -1}))
    assert Llama.build(folder).model.vocab_size == params["vocab_size"]


def test_build_refuses_what_does_not_belong_together(checkpoint: Path, tmp_path: Path) -> None:
    other = write_tiktoken(tmp_path / "other.model", merges=[b"ab"])
    with pytest.raises(ValueError, match=r"vocab_size 544.*other.model has 513"):
        Llama.build(checkpoint, other)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Llama.build(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.model"):
        Llama.build(checkpoint, tmp_path / "nowhere.model")
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match="give tokenizer_path"):
        Llama.build(folder)
    with pytest.raises(ValueError, match="model_parallel_size=2"):
        Llama.build(checkpoint, model_parallel_size=2)


def test_llama_2(checkpoint: Path, tmp_path: Path) -> None:
    """A SentencePiece checkpoint chats in Llama 2's form through the same calls."""
    path = write_sentencepiece(tmp_path / "tokenizer.model")
    words = Tokenizer(path).n_words
    folder = tmp_path / "llama-2"
    folder.mkdir()
    params = json.loads((checkpoint / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({**params, "vocab_size": -1}))
    weights = torch.load(checkpoint / "consolidated.00.pth")
    for key in ("tok_embeddings.weight", "output.weight"):
        weights[key] = weights[key][:words].clone()
    torch.save({**weights, "rope.freqs": torch.ones(4)}, folder / "consolidated.00.pth")
    model = Llama.build(folder, path, dtype="float32", device="cpu", max_seq_len=60)
    prompts = [model.tokenizer.encode("Hello!", bos=True)]
    (tokens,) = model.generate(prompts, 12, temperature=0)[0]
    (text,) = model.text_completion(["Hello!"], temperature=0, max_gen_len=12, logprobs=True)
    assert text["generation"] == model.tokenizer.decode(tokens) == "".join(text["tokens"])
    (chat,) = model.chat_completion([[{"role": "user", "content": "Hi"}]], max_gen_len=3)
    assert chat["finish_reason"] in ("stop", "length")
    with pytest.raises(ValueError, match=r"dialogs\[0\]"):
        model.chat_completion([[{"role": "user", "content": "[INST]"}]])


def sample_on_ranks(folder: str) -> list[list[int]]:
    model = Llama.build(folder, max_batch_size=3, device="cpu", dtype="float32", seed=4)
    return model.generate(ids(model), 16, temperature=1.0, top_p=0.95)[0]


def test_two_ranks_sample_the_tokens_of_one(checkpoint: Path) -> None:
    expected = sample_on_ranks(str(checkpoint))
    assert run_ranks(2, sample_on_ranks, str(checkpoint)) == [expected, expected]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_tokens_of_the_cpu(checkpoint: Path) -> None:
    answers = [
        Llama.build(checkpoint, device=device, dtype="float32").generate(
            ids(Llama.build(checkpoint, device="cpu")), 16, temperature=0
        )
        for device in ("cpu", "cuda")
    ]
    assert answers[0] == answers[1]


def test_answers_go_on_after_a_beginning_that_is_written(llama: Llama) -> None:
    options = {"temperature": 0, "max_gen_len": 5, "logprobs": True}
    (begun,) = llama.text_completion(["hello"], prefix=" the world", **options)
    (plain,) = llama.text_completion(["hello the world"], **options)
    assert begun["generation"] == " the world" + plain["generation"]
    assert (begun["tokens"], begun["logprobs"]) == (plain["tokens"], plain["logprobs"])
    dialog = [{"role": "user", "content": "hello"}]
    (answer,) = llama.chat_completion([dialog], prefix="use", temperature=0, max_gen_len=3)
    assert answer["generation"]["content"].startswith("use")


def test_build_says_how_many_tokens_fit_where_not_all_do(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Llama.build(checkpoint, max_batch_size=3, device="cpu", dtype="float32")
    assert capsys.readouterr().err == ""
    Llama.build(checkpoint, max_batch_size=3, device="cpu", dtype="float32", kv_memory=40_000)
    assert capsys.readouterr().err == (
        "keys and values of 128 tokens fit into memory, of 3 requests of 64; what does not fit "
        "waits (kv_memory)\n"
    )


def test_with_echo_a_stop_string_that_begins_in_the_prompt_does_not_count(
    chain: Chain, tokenizer: Tokenizer
) -> None:
    model = chain([*tokenizer.encode("abcd"), tokenizer.eos_id])
    (found,) = model.text_completion(["xa"], temperature=0, stop="ab", echo=True)
    assert found["generation"].endswith("xabcd")
