"""`llama eval`: perplexity of a text, accuracy on questions with choices, tasks of lm-eval.

    llama eval params/tiny --text held-out.txt
    llama eval Llama-3.1-8B --quantize int4 --text held-out.txt --choices questions.jsonl
    llama eval Llama-3.2-1B --tasks hellaswag,arc_easy --limit 200 --output scores.json
    torchrun --nproc_per_node 2 -m llama eval Llama-3.1-8B --text held-out.txt

In a text file a line `<|endoftext|>` separates documents; white space around them does not count.
In a file of questions each line is one, and `answer` the index of the right choice:

    {"prompt": "The cat says", "choices": ["moo", "meow"], "answer": 1}

Other keys are ignored.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveFloat, PositiveInt

from llama import console, distributed
from llama.checkpoint.loading import load
from llama.checkpoint.opening import open_checkpoint
from llama.errors import InputError, MissingFileError
from llama.evaluation.scoring import BATCH_TOKENS, Question, score_choices, score_texts
from llama.generation import Llama
from llama.storage.files import atomic_write, expand, read_text

_SEPARATOR = re.compile(r"^<\|endoftext\|>[^\S\n]*$", re.MULTILINE)


def evaluate(
    path: str,
    /,
    *,
    text: str | None = None,
    choices: str | None = None,
    tasks: str | None = None,
    limit: PositiveFloat | None = None,
    num_fewshot: NonNegativeInt | None = None,
    include_path: str | None = None,
    chat: Annotated[bool, Parameter(negative="")] = False,
    tokenizer_path: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    adapter: str | None = None,
    max_seq_len: PositiveInt | None = None,
    batch_tokens: PositiveInt = BATCH_TOKENS,
    output: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Measures a checkpoint by a text, by questions with choices, by tasks of lm-eval.

    Args:
        path: Checkpoint folder, here or remote, quantized or not.
        text: File of UTF-8 text that the model was not trained on.
        choices: File of questions, a JSON object per line with prompt, choices and answer.
        tasks: Names of lm-eval's tasks, joined by commas.
        limit: Examples of each task, or below 1 a share of them.
        num_fewshot: Solved examples before each example of a task.
        include_path: Folder with tasks of your own.
        chat: Prompts are a user's messages in the model's chat format.
        tokenizer_path: tokenizer.model or tokenizer.json; default: the folder's own.
        device: cuda, mps or cpu; default: the best there is.
        dtype: bfloat16, float16 or float32.
        quantize: bf12, which rounds nothing, int8 or int4.
        adapter: Folder of a LoRA adapter.
        max_seq_len: Tokens that are read at a time; default: the model's context.
        batch_tokens: Tokens that go through the model at a time, padding included.
        output: File that the JSON object is written to.
        as_json: Print one JSON object instead of text.
    """
    names = tasks.split(",") if tasks else []
    if not (text or choices or names):
        raise InputError("nothing to measure: give --text FILE, --choices FILE or --tasks a,b")
    for_tasks = {"limit": limit, "num_fewshot": num_fewshot, "include_path": include_path}
    for name, value in for_tasks.items():
        if value is not None and not names:
            raise InputError(f"--{name} is for lm-eval's tasks: give --tasks a,b with it")
    if chat and not (choices or names):
        raise InputError("--chat is for --choices and --tasks; a text is scored as it stands")
    if output and not Path(expand(output)).absolute().parent.is_dir():
        raise MissingFileError(f"--output {output}: its folder does not exist; make it first")
    documents = read_documents(text) if text else []
    questions = read_questions(choices) if choices else []
    if names:
        try:
            from llama.evaluation import lm_eval_model
        except ImportError as error:
            raise InputError(f"--tasks needs lm-eval ({error}): pip install lm-eval") from error
        manager = lm_eval_model.find_tasks(names, include_path)

    checkpoint = open_checkpoint(path)
    tokenizer = checkpoint.open_tokenizer(tokenizer_path)
    model = load(
        checkpoint,
        device=device,
        dtype=dtype,
        quantize=quantize,
        adapter=adapter,
        max_seq_len=max_seq_len,
        max_batch_size=8,
    )
    report: dict[str, Any] = {
        "path": path,
        "adapter": adapter,
        "quantize": checkpoint.quantize or quantize,
        "dtype": str(model.norm.weight.dtype).removeprefix("torch."),
        "device": model.norm.weight.device.type,
        "ranks": distributed.model_parallel_size(),
        "max_seq_len": model.params.max_seq_len,
    }

    def say(text: str) -> None:
        if not as_json:
            console.say(text)

    if documents:
        score = score_texts(model, tokenizer, documents, batch_tokens)
        derived = {"bits_per_byte": score.bits_per_byte, "perplexity": score.perplexity}
        report["text"] = {"file": text, "documents": len(documents), **asdict(score), **derived}
        say(
            f"{text}: {len(documents):,} documents, {score.tokens:,} tokens, "
            f"{score.bytes:,} bytes\n"
            f"  bits per byte  {score.bits_per_byte:.4f}\n"
            f"  perplexity     {score.perplexity:,.3f} per token"
        )
    if questions:
        accuracy = score_choices(model, tokenizer, questions, batch_tokens, chat)
        report["choices"] = {"file": choices, "chat": chat, **asdict(accuracy)}
        say(
            f"{choices}: {len(questions):,} questions\n"
            f"  acc            {_share(accuracy.acc, accuracy.acc_stderr)}\n"
            f"  acc_norm       {_share(accuracy.acc_norm, accuracy.acc_norm_stderr)}, "
            "by likelihood per byte"
        )
    if names:
        report["tasks"], table = lm_eval_model.run_tasks(
            Llama(model, tokenizer), names, manager, limit, num_fewshot, chat, batch_tokens
        )
        say(table)
    if output and console.is_main():
        with atomic_write(output) as file:
            file.write(json.dumps(report, indent=2, default=str).encode() + b"\n")
    if as_json:
        console.say(json.dumps(report, default=str))


def _share(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def read_documents(path: str) -> list[str]:
    """The documents of a text file, without empty ones.

    Raises OSError if it can't be read, and InputError if it is not UTF-8 or has no document.
    """
    documents = [part.strip() for part in _SEPARATOR.split(read_text(path))]
    if not any(documents):
        raise InputError(f"{path} is empty: give a text to measure on")
    return [document for document in documents if document]


def read_questions(path: str) -> list[Question]:
    """The questions of a .jsonl file.

    Raises OSError if it can't be read, and InputError, with the line's number, for a wrong line.
    """
    questions = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: this line is not JSON: {error}") from error
        try:
            questions.append(_question(entry))
        except InputError as error:
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
    if type(answer) is not int or answer not in range(len(choices)):
        last = len(choices) - 1
        raise InputError(f"answer should be the index of a choice, 0 to {last}, not {answer!r:.40}")
    return Question(prompt, choices, answer)
