"""`llama eval`: how good a checkpoint is, in figures that compare.

    llama eval params/tiny --text held-out.txt
    llama eval Llama-3.1-8B --quantize int4 --text held-out.txt --choices questions.jsonl
    llama eval Llama-3.2-1B --tasks hellaswag,arc_easy --limit 200 --output scores.json
    torchrun --nproc_per_node 2 -m llama eval Llama-3.1-8B --text held-out.txt

In a text file a line `<|endoftext|>` separates documents; white space around them does not count.
In a file of questions each line is one, and `answer` the number of the right choice, from 0 on:

    {"prompt": "The cat says", "choices": ["moo", "meow"], "answer": 1}

What is read beside those keys is left alone. The last line that is printed is all of it in JSON.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from llama import console, distributed
from llama.checkpoint.loading import stored_format
from llama.checkpoint.opening import open_checkpoint
from llama.errors import InputError, MissingFileError
from llama.evaluation.scoring import BATCH_TOKENS, Question, score_choices, score_texts
from llama.generation import Llama
from llama.storage.files import read_bytes

_SEPARATOR = re.compile(r"^<\|endoftext\|>[^\S\n]*$", re.MULTILINE)


def evaluate(
    path: str,
    text: str | None = None,
    choices: str | None = None,
    tasks: str | tuple[str, ...] | None = None,
    limit: float | None = None,
    num_fewshot: int | None = None,
    include_path: str | None = None,
    chat: bool = False,
    tokenizer_path: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    adapter: str | None = None,
    max_seq_len: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    output: str | None = None,
) -> None:
    """Measures a checkpoint: perplexity of a text, questions with choices, tasks of lm-eval.

    Args:
        path: folder of a checkpoint, here or remote, quantized or not.
        text: file of UTF-8 text that the model has not seen.
        choices: file of questions, a JSON object a line with prompt, choices and answer.
        tasks: names of lm-eval's tasks, joined by commas.
        limit: of each task only so many examples, or such a share of them.
        num_fewshot: how many solved examples stand before each example of a task.
        include_path: folder with tasks of your own.
        chat: prompts are a user's messages in the model's chat format.
        tokenizer_path: tokenizer.model or tokenizer.json; the folder's own if not given.
        device: cuda, mps or cpu; the best there is if not given.
        dtype: bfloat16, float16 or float32.
        quantize: int8 or int4.
        adapter: folder of a LoRA adapter.
        max_seq_len: how many tokens are read at a time; the model's own context if not given.
        batch_tokens: how many tokens go through the model at a time, padding included.
        output: file to which the JSON is written as well.
    """
    names = tasks.split(",") if isinstance(tasks, str) else [str(name) for name in tasks or ()]
    if not (text or choices or names):
        raise InputError("nothing to measure: give --text FILE, --choices FILE or --tasks a,b")
    for name, number in (("batch_tokens", batch_tokens), ("max_seq_len", max_seq_len)):
        if number is not None and (type(number) is not int or number < 1):
            raise InputError(f"--{name} {number} should be a whole number greater than 0")
    for_tasks = {"limit": limit, "num_fewshot": num_fewshot, "include_path": include_path}
    if given := [name for name, value in for_tasks.items() if value is not None and not names]:
        raise InputError(f"--{given[0]} is for lm-eval's tasks: give --tasks a,b with it")
    if chat and not (choices or names):
        raise InputError("--chat is for --choices and --tasks; a text is scored as it stands")
    if output is not None and not Path(str(output)).absolute().parent.is_dir():
        raise MissingFileError(f"--output {output}: its folder is not there; make it first")
    documents = read_documents(str(text)) if text else []
    questions = read_questions(str(choices)) if choices else []
    if names:
        lm_eval_model = _lm_eval_model()
        manager = lm_eval_model.find_tasks(names, include_path)

    llama = Llama.build(
        str(path),
        tokenizer_path,
        max_seq_len,
        device=device,
        dtype=dtype,
        quantize=quantize,
        adapter=adapter,
    )
    stored = stored_format(open_checkpoint(str(path)), quantize)
    found: dict[str, Any] = {"path": str(path), "adapter": adapter, "quantize": stored}
    found |= _circumstances(llama)
    if documents:
        found["text"] = {"file": text, **_measure_text(llama, text, documents, batch_tokens)}
    if questions:
        scores = _measure_choices(llama, choices, questions, batch_tokens, chat)
        found["choices"] = {"file": choices, "chat": chat, **scores}
    if names:
        found["tasks"], table = lm_eval_model.run_tasks(
            llama, names, manager, limit, num_fewshot, chat, batch_tokens
        )
        console.say(table)
    if output is not None and console.is_main():
        Path(str(output)).write_text(json.dumps(found, indent=2, default=str) + "\n")
    console.say(json.dumps(found, default=str))


def _lm_eval_model() -> ModuleType:
    try:
        from llama.evaluation import lm_eval_model
    except ImportError as error:
        raise InputError(f"--tasks needs lm-eval ({error}): pip install lm-eval") from error
    return lm_eval_model


def _circumstances(llama: Llama) -> dict[str, Any]:
    weight = llama.model.norm.weight
    return {
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": weight.device.type,
        "ranks": distributed.model_parallel_size(),
        "max_seq_len": llama.model.params.max_seq_len,
    }


def _measure_text(
    llama: Llama, file: str | None, documents: list[str], batch_tokens: int
) -> dict[str, Any]:
    score = score_texts(llama.model, llama.tokenizer, documents, batch_tokens)
    console.say(
        f"{file}: {len(documents):,} documents, {score.tokens:,} tokens, {score.bytes:,} bytes\n"
        f"  bits per byte  {score.bits_per_byte:.4f}\n"
        f"  perplexity     {score.perplexity:,.3f} a token"
    )
    derived = {"bits_per_byte": score.bits_per_byte, "perplexity": score.perplexity}
    return {"documents": len(documents), **asdict(score), **derived}


def _measure_choices(
    llama: Llama, file: str | None, questions: list[Question], batch_tokens: int, chat: bool
) -> dict[str, Any]:
    score = score_choices(llama.model, llama.tokenizer, questions, batch_tokens, chat)

    def share(value: float, error: float | None) -> str:
        return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")

    console.say(
        f"{file}: {score.questions:,} questions\n"
        f"  acc            {share(score.acc, score.acc_stderr)}\n"
        f"  acc_norm       {share(score.acc_norm, score.acc_norm_stderr)}, for a byte of the choice"
    )
    return asdict(score)


def read_documents(path: str) -> list[str]:
    """The documents of a text file, without empty ones.

    Raises OSError where it cannot be read, and ValueError where it is not UTF-8 or has none.
    """
    documents = [part.strip() for part in _SEPARATOR.split(_read(path))]
    if not any(documents):
        raise InputError(f"{path} is empty: give a text to measure on")
    return [document for document in documents if document]


def read_questions(path: str) -> list[Question]:
    """The questions of a .jsonl file.

    Raises OSError where it cannot be read, and ValueError, with the line's number, for a line that
    is none, or where there is none.
    """
    questions = []
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: this line is not JSON: {error}") from error
        try:
            questions.append(_question(entry))
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from error
    if not questions:
        raise InputError(f"{path} is empty: give at least one question")
    return questions


def _question(entry: Any) -> Question:
    if not isinstance(entry, dict):
        raise InputError(f"should be a JSON object, not {entry!r:.40}")
    if missing := [key for key in Question._fields if key not in entry]:
        raise InputError(f"lacks {missing[0]!r}; it has {', '.join(entry) or 'nothing'}")
    prompt, choices, answer = (entry[key] for key in Question._fields)
    if not isinstance(prompt, str):
        raise InputError(f"prompt should be a string, not {prompt!r:.40}")
    are_texts = isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices)
    if not are_texts or len(choices) < 2:
        raise InputError(f"choices should be two or more strings with text, not {choices!r:.60}")
    if type(answer) is not int or not 0 <= answer < len(choices):
        last = len(choices) - 1
        raise InputError(
            f"answer should be the number of a choice, 0 to {last}, not {answer!r:.40}"
        )
    return Question(prompt, choices, answer)


def _read(path: str) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error
