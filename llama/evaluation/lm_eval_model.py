"""lm-eval's tasks (EleutherAI's evaluation harness) on a `Llama`.

    llama eval params/tiny --tasks hellaswag,gsm8k
    python -m llama.evaluation.lm_eval_model --model llama --model_args path=params/tiny ...
    torchrun --nproc_per_node 2 -m llama.evaluation.lm_eval_model --model llama ...

The second line is lm-eval's own command with all of its flags, and with the model `llama`. Releases
of lm-eval after 0.4.13 find that model themselves (`lm_eval --model llama`) where this package is
installed. In Python, with lm-eval's defaults:

    import llama.evaluation.lm_eval_model
    lm_eval.simple_evaluate(model="llama", model_args="path=params/tiny", tasks=["hellaswag"])

Every prompt begins with begin_of_text, as in training. lm-eval's `hf` model does the same if the
tokenizer's file says so, as Llama 3's does, but then puts two of them before a text for perplexity
and scores the second; with `add_bos_token=False` both agree.

In a prompt that begins with the name of begin_of_text, as chat templates and the prompts of some
benchmarks do, the names of special tokens stand for the tokens. In any other text, and in every
continuation that is scored, they are plain text.
"""

import contextlib
import io
import re
import sys
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items
from itertools import groupby
from typing import Any

import lm_eval
import lm_eval.models  # registers lm-eval's own models, which it skips once another is registered
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, make_table

from llama import console
from llama.engine.request import Sequence
from llama.engine.sampling import SamplingParams
from llama.errors import InputError
from llama.evaluation.scoring import BATCH_TOKENS, log_likelihoods, notice_cuts
from llama.generation import Llama
from llama.tokenizer import Message

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SETTINGS = ("top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty")


def find_tasks(names: Items[str], include_path: str | None = None) -> TaskManager:
    """lm-eval's tasks and those in the folder `include_path`.

    Raises InputError for one of `names`, which may have wildcards, that matches none of them.
    """
    manager = TaskManager(include_path=include_path)
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        place = f" nor in {include_path}" if include_path else ""
        raise InputError(
            f"there is no task {unknown[0]!r} in lm-eval{place}; `lm-eval ls tasks` lists them, "
            "and --include_path adds a folder of your own"
        )
    return manager


def run_tasks(
    llama: Llama,
    names: Items[str],
    manager: TaskManager,
    limit: float | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    batch_tokens: int = BATCH_TOKENS,
) -> tuple[dict[str, dict[str, Any]], str]:
    """lm-eval's results by task, and its table of them; both empty on all ranks but the first.

    `limit` is the number of examples of each task, or below 1 a share of them. With `chat` prompts
    are messages in the model's chat format.
    """
    # lm-eval and its libraries print to stderr on every rank.
    with contextlib.redirect_stderr(sys.stderr if console.is_main() else io.StringIO()):
        found = lm_eval.simple_evaluate(
            model=LlamaLM(llama, batch_tokens=batch_tokens),
            tasks=manager.match_tasks(list(names)),
            task_manager=manager,
            limit=limit,
            num_fewshot=num_fewshot,
            apply_chat_template=chat,
            log_samples=False,
        )
    if found is None:
        return {}, ""
    tables = [make_table(found), *([make_table(found, "groups")] if "groups" in found else [])]
    return found["results"], "\n".join(tables)


@register_model("llama")
class LlamaLM(TemplateLM):
    """lm-eval's interface to a model, implemented by a `Llama`.

    `path` is a `Llama`, or a checkpoint folder for `Llama.build`, which gets `settings` too.
    `batch_size` is how many answers are generated at a time; scoring is batched by `batch_tokens`.
    `seed` is for tasks that sample.
    """

    def __init__(
        self,
        path: str | Llama,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        seed: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__()
        if not isinstance(path, Llama):
            if batch_size is not None and not str(batch_size).startswith("auto"):
                max_batch_size = int(batch_size)
            # lm-eval's command passes cuda:0 if no device is given, on any machine and rank.
            device = None if device == "cuda:0" else device
            path = Llama.build(str(path), max_batch_size=max_batch_size, device=device, **settings)
        self.llama = path
        self.batch_tokens, self.seed = batch_tokens, seed
        special = path.tokenizer.special_tokens
        self._names = {token: name for name, token in special.items()}
        self._bos_name = self._names[path.tokenizer.bos_id]
        self._special = re.compile(f"({'|'.join(map(re.escape, special))})")

    @property
    def max_length(self) -> int:
        return self.llama.engine.max_seq_len

    @property
    def max_gen_toks(self) -> int:
        """The longest answer of a task that sets no length: lm-eval's own default."""
        return 256

    @property
    def eot_token_id(self) -> int:
        return self.llama.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.llama.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        """For the names of lm-eval's cache files."""
        return self.llama.tokenizer.model_path.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return type(self.llama.formatter).__name__ if chat_template else None

    def apply_chat_template(
        self, chat_history: list[Message], add_generation_prompt: bool = True
    ) -> str:
        """A dialog in the model's chat format, with the names of special tokens.

        Without `add_generation_prompt` the last message is the beginning of the answer. Raises
        InputError for a message with the name of a special token in its text.
        """
        for message in chat_history:
            if found := self._special.search(message["content"]):
                raise InputError(
                    f"a {message['role']}'s message has {found[0]}, the name of a special token, "
                    "in its text; lm-eval's chat prompts have no other way to write that token"
                )
        encode = self.llama.formatter.encode_dialog_prompt
        if add_generation_prompt:
            return self._text(encode(chat_history))
        prompt = self._text(encode(chat_history[:-1]))
        space = "" if prompt[-1].isspace() else " "  # before Llama 2's answers
        return prompt + space + chat_history[-1]["content"].strip()

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """The ids of a prompt with begin_of_text, or of a plain text without."""
        if add_special_tokens is False:
            return self.llama.tokenizer.encode(string)
        return self._encode(string, "")

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm or not console.is_main())

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """As `LM.loglikelihood_rolling`. The last window of a long text is a full one too."""
        pairs, owners = [], []
        for owner, request in enumerate(requests):
            ids = self.llama.tokenizer.encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                pairs.append(make_disjoint_window(window))
                owners.append(owner)
        totals = [0.0] * len(requests)
        found = log_likelihoods(self.llama.model, pairs, self.batch_tokens)
        for owner, likelihood in zip(owners, found, strict=True):
            totals[owner] += likelihood.total
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As `LM.generate_until`: an answer to each prompt, up to a string of its `until`.

        Raises InputError for settings that the engine does not have, such as num_beams=4.
        """
        cuts: list[int] = []
        answers = []
        for i, request in enumerate(requests):
            prompt, settings = request.args[:2]
            answers.append(self._answer(prompt, settings, self.seed + i, cuts))
        notice_cuts(
            cuts, f"prompts leave no room for an answer in the context of {self.max_length}"
        )
        engine = self.llama.engine
        with console.progress(len(answers), "Answering", unit=" answers") as bar:
            try:
                for answer in answers:
                    engine.add(answer)
                while not engine.idle:
                    for answer in engine.step():
                        if answer.error is not None:
                            raise answer.error
                        bar.update(answer.finish_reason is not None)
            finally:
                for answer in answers:
                    engine.cancel(answer)
        return [answer.text for answer in answers]

    def _answer(
        self, prompt: str, settings: Mapping[str, Any], seed: int, cuts: list[int]
    ) -> Sequence:
        """A request to the engine; appends to `cuts` how many tokens its prompt loses."""
        options = dict(settings)
        until = options.pop("until", None) or []
        lengths = [options.pop(name, None) for name in _LENGTHS]
        max_gen_len = int(next((n for n in lengths if n is not None), self.max_gen_toks))
        temperature, do_sample = options.pop("temperature", None), options.pop("do_sample", None)
        if do_sample is False or (do_sample is None and temperature is None):
            temperature = 0.0
        if options.get("num_beams") == 1:
            del options["num_beams"]
        if unknown := sorted(set(options) - set(_SETTINGS)):
            raise InputError(
                f"generation_kwargs has {unknown[0]}={options[unknown[0]]!r}, which is not "
                f"supported; besides temperature, do_sample and until there are {_SETTINGS}"
            )
        if max_gen_len >= self.max_length:
            raise InputError(
                f"answers of {max_gen_len} tokens leave no room for a prompt in the context of "
                f"{self.max_length}; ask for fewer by --gen_kwargs max_gen_toks=..."
            )
        ids = self._encode(prompt, "")
        cuts.append(max(0, len(ids) + max_gen_len - self.max_length))
        params = SamplingParams(
            temperature=1.0 if temperature is None else float(temperature),
            seed=seed,
            **{"top_p": 1.0, **options},
        )
        stop = [until] if isinstance(until, str) else until
        return Sequence(ids[cuts[-1] :], max_gen_len, params, tuple(filter(None, stop)))

    def _loglikelihood_tokens(
        self, requests: Iterable[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        found = log_likelihoods(self.llama.model, pairs, self.batch_tokens)
        return [(likelihood.total, likelihood.is_greedy) for likelihood in found]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of both; as in lm-eval, the continuation gets the context's last white space.

        A continuation that only completes the context's last token is encoded on its own.
        """
        kept = context.rstrip()
        start = self._encode(kept, "")
        whole = self._encode(kept, context[len(kept) :] + continuation)
        return start, whole[len(start) :] or self.llama.tokenizer.encode(continuation)

    def _encode(self, prompt: str, text: str) -> list[int]:
        """begin_of_text, `prompt`, which may have names of special tokens, and plain `text`."""
        tokenizer = self.llama.tokenizer
        if not prompt.startswith(self._bos_name):
            return tokenizer.encode(prompt + text, bos=True)
        *parts, last = self._special.split(prompt)
        ids = []
        for part in filter(None, parts):
            token = tokenizer.special_tokens.get(part)
            ids += tokenizer.encode(part) if token is None else [token]
        return ids + tokenizer.encode(last + text)

    def _text(self, ids: Iterable[int]) -> str:
        """The text of `ids` with the names of special tokens, which Llama 2's decoder drops."""
        decode, names = self.llama.tokenizer.decode, self._names
        return "".join(
            "".join(names[i] for i in run) if is_special else decode(run)
            for is_special, run in groupby(ids, names.__contains__)
        )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
