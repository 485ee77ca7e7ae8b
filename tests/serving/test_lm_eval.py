"""lm-eval over HTTP has the figures that it has in process."""

from typing import Any

import pytest
from serving.conftest import TINY

from llama.checkpoint.convert import convert
from llama.generation import Llama

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity")  # its models over HTTP need it

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from llama.evaluation.lm_eval_model import LlamaLM

PROMPTS = ["Once upon a time, there was a", "Tom and his dog went", "What is 2 + 3?"]
CHOICES = [" girl named Lily.", " to the park", " x"]


def requests(*arguments: tuple) -> list[Instance]:
    return [Instance(request_type="", doc={}, arguments=a, idx=0) for a in arguments]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("hf"))
    convert(str(TINY), folder, to="hf")
    return folder


def remote(url: str, folder: str, add_bos_token: bool = True) -> Any:
    return get_model("local-completions")(
        model="tiny",
        base_url=f"{url}/v1/completions",
        tokenizer=folder,
        tokenizer_backend="huggingface",
        add_bos_token=add_bos_token,
        batch_size=4,
    )


def test_log_likelihoods(url: str, folder: str, llama: Llama) -> None:
    pairs = requests(*[(prompt, choice) for prompt in PROMPTS for choice in CHOICES])
    here = LlamaLM(llama).loglikelihood(pairs)
    there = remote(url, folder).loglikelihood(pairs)
    assert [greedy for _, greedy in there] == [greedy for _, greedy in here]
    assert [score for score, _ in there] == pytest.approx([score for score, _ in here], rel=1e-5)


def test_answers(url: str, folder: str, llama: Llama) -> None:
    asked = requests(*[(prompt, {"until": ["."], "max_gen_toks": 20}) for prompt in PROMPTS])
    there = remote(url, folder).generate_until(asked)
    assert there == LlamaLM(llama).generate_until(asked)


def test_perplexity(url: str, folder: str, llama: Llama) -> None:
    texts = requests(*[(prompt + choice,) for prompt in PROMPTS for choice in CHOICES])
    here = LlamaLM(llama).loglikelihood_rolling(texts)
    # lm-eval puts a token in front itself.
    there = remote(url, folder, add_bos_token=False).loglikelihood_rolling(texts)
    assert there == pytest.approx(here, rel=1e-5)
