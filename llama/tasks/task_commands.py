"""`llama tasks`: classify, answer, translate, and train a classifier, at the command line.

    llama tasks classify "The soup was cold." --labels positive,negative
    llama tasks answer "Where does Tom live?" --context "Tom lives in Lima."
    llama tasks translate "Guten Morgen!" --to en --model llama3.2:3b
    llama tasks train reviews.jsonl --out mood.json
    llama tasks classify --head mood.json < reviews.txt

Texts are arguments, the lines of a file or those that are piped in. Each gives a line: the result
and its score, or with `--json` an object.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.types import PositiveFloat, PositiveInt

from llama import console
from llama.checkpoint.bundled import bundled_model
from llama.errors import InputError
from llama.generation import Llama
from llama.lora.adapter_layers import LoraConfig
from llama.storage.files import read_text
from llama.tasks.classification import classify
from llama.tasks.classifier_adapter import adapter_prompt, train_adapter
from llama.tasks.classifier_head import ClassifierHead
from llama.tasks.label_prompts import LabelledText
from llama.tasks.question_answering import answer
from llama.tasks.task_files import read_entries, read_examples
from llama.tasks.translation import translate
from llama.training import TrainConfig

_BATCH_SIZE = 32
_Flag = Parameter(negative="")
Json = Annotated[bool, Parameter(name="--json", negative="")]


@Parameter(name="*", group="Model")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """The model, as `Llama.build` opens it."""

    model: str | None = None
    """checkpoint folder or name of a pulled model; default: the bundled one"""
    adapter: str | None = None
    """folder of a LoRA adapter"""
    device: str | None = None
    """cuda, mps or cpu; default: the best there is"""
    dtype: str | None = None
    """bfloat16, float16 or float32"""
    quantize: str | None = None
    """bf12, int8 or int4"""
    max_seq_len: PositiveInt | None = None
    """tokens of a prompt and its answer; default: the model's context"""
    max_batch_size: PositiveInt = _BATCH_SIZE
    """requests that run at a time"""

    def build(self) -> Llama:
        """The model."""
        options = dataclasses.asdict(self)
        return Llama.build(options.pop("model") or bundled_model(), **options)


_MODEL = ModelFlags()


def classify_command(
    *texts: str,
    labels: str | None = None,
    head: str | None = None,
    file: str | None = None,
    examples: str | None = None,
    instruction: str | None = None,
    chat: bool = True,
    calibrate: bool = True,
    normalize: bool = True,
    as_json: Json = False,
    model: ModelFlags = _MODEL,
) -> None:
    """Says which label fits each text, by the labels' likelihoods or by a trained classifier.

    With an --adapter and no labels, these are the ones that `llama tasks train --lora` has trained.

    Args:
        texts: Texts; default: the lines of --file, or of what is piped in.
        labels: The labels, with commas between them.
        head: A head that `llama tasks train` has written, which has its own labels.
        file: A text in each line; a .jsonl has objects with text. Where those have a label too, the
            share of right labels is printed on standard error.
        examples: A .jsonl with text and label in each line, which are shown to the model.
        instruction: What stands before each text; default: a question that lists the labels.
        chat: Whether the prompt is in the model's chat format; --no-chat is for base models.
        calibrate: Divide likelihoods by those after texts that say nothing.
        normalize: Compare likelihoods per token, not those of whole labels.
        as_json: Print an object with the scores of all labels for each text.
    """
    is_trained = head is None and labels is None and model.adapter is not None
    if not is_trained and (labels is None) == (head is None):
        raise InputError(
            "give --labels, with commas between them, a trained --head or a trained --adapter"
        )
    if is_trained and (instruction or examples):
        raise InputError(
            "--examples and --instruction are for --labels, not for an --adapter alone"
        )
    if head is not None and (examples or instruction):
        raise InputError("--examples and --instruction are for --labels, not for a --head")
    entries = read_entries(texts, file, "text", ("label",))
    shown = [] if examples is None else read_examples(examples)
    given = [entry["text"] for entry in entries]
    if head is not None:
        results = ClassifierHead.open(head).classify(model.build(), given)
    elif is_trained:
        prompt = adapter_prompt(model.adapter or "")
        results = classify(model.build(), given, **prompt, normalize=normalize)
    else:
        results = classify(
            model.build(),
            given,
            _split(labels or ""),
            shown,
            instruction=instruction,
            chat=chat,
            calibrate=calibrate,
            normalize=normalize,
        )
    for entry, result in zip(entries, results, strict=True):
        _print(f"{result.label}\t{result.score:.3f}", entry, result, as_json)
    marked = [(e["label"], r.label) for e, r in zip(entries, results, strict=True) if "label" in e]
    if marked:
        right = sum(expected.strip() == found for expected, found in marked)
        share = f"{right / len(marked):.1%}"
        console.notice(f"{share} of {len(marked)} labels are those of the file")


def answer_command(
    *questions: str,
    context: str | None = None,
    context_file: str | None = None,
    file: str | None = None,
    max_gen_len: PositiveInt = 256,
    chat: bool = True,
    as_json: Json = False,
    model: ModelFlags = _MODEL,
) -> None:
    """Answers each question, from a context if there is one.

    Args:
        questions: Questions; default: the lines of --file, or of what is piped in.
        context: The text that answers come from.
        context_file: A file with that text.
        file: A question in each line; a .jsonl has objects with question, and context or none.
        max_gen_len: Tokens of an answer at most.
        chat: Whether the prompt is in the model's chat format; --no-chat is for base models.
        as_json: Print an object with score and support for each question.
    """
    if context is not None and context_file is not None:
        raise InputError("give --context or --context_file, not both")
    if context_file is not None:
        context = read_text(context_file)
    entries = read_entries(questions, file, "question", ("context",))
    own = [entry for entry in entries if "context" in entry]
    if own and context is not None:
        raise InputError(f"{file} has contexts of its own: leave out --context")
    if own and len(own) < len(entries):
        raise InputError(f"{file} has a context for {len(own)} of {len(entries)} questions only")
    contexts = [entry["context"] for entry in own] or context
    given = [entry["question"] for entry in entries]
    results = answer(model.build(), given, contexts, max_gen_len=max_gen_len, chat=chat)
    for entry, result in zip(entries, results, strict=True):
        _print(f"{_one_line(result.text)}\t{result.score:.3f}", entry, result, as_json)
    _notice_cut([result.finish_reason for result in results], max_gen_len)


def translate_command(
    *texts: str,
    to: str = "en",
    source: str | None = None,
    file: str | None = None,
    beams: PositiveInt = 1,
    max_gen_len: PositiveInt = 512,
    chat: bool = True,
    as_json: Json = False,
    model: ModelFlags = _MODEL,
) -> None:
    """Translates each text.

    Args:
        texts: Texts; default: the lines of --file, or of what is piped in.
        to: Code or English name of the language to translate into.
        source: That of the texts; default: the model finds out.
        file: A text in each line; a .jsonl has objects with text.
        beams: How many beginnings beam search keeps; 1 is greedy search.
        max_gen_len: Tokens of a translation at most.
        chat: Whether the prompt is in the model's chat format; --no-chat is for base models.
        as_json: Print an object for each text.
    """
    entries = read_entries(texts, file, "text")
    given = [entry["text"] for entry in entries]
    results = translate(
        model.build(),
        given,
        to,
        source=source,
        beams=beams,
        max_gen_len=max_gen_len,
        chat=chat,
    )
    for entry, result in zip(entries, results, strict=True):
        _print(f"{_one_line(result.text)}\t{result.score:.3f}", entry, result, as_json)
    _notice_cut([result.finish_reason for result in results], max_gen_len)


def train_command(
    data: str,
    /,
    *,
    out: str,
    lora: Annotated[bool, _Flag] = False,
    labels: str | None = None,
    valid_data: str | None = None,
    l2: PositiveFloat = 1.0,
    echo: bool = True,
    epochs: PositiveFloat | None = None,
    learning_rate: PositiveFloat | None = None,
    batch_size: PositiveInt | None = None,
    lora_r: PositiveInt | None = None,
    seed: int = 1,
    instruction: str | None = None,
    chat: bool = True,
    model: ModelFlags = _MODEL,
) -> None:
    """Trains a classifier on labelled examples: a head on the model's embeddings, or an adapter.

    Args:
        data: A .jsonl with text and label in each line.
        out: File of the head, or folder of the adapter.
        lora: Train an adapter (LoRA), which makes the right label the likeliest answer.
        labels: The labels in order, with commas; default: in the order of the data.
        valid_data: Such a file that is not trained on; the share of right labels is printed, and
            of an adapter the best is kept.
        l2: How strongly large weights of a head are penalized.
        echo: Read each text twice for the embeddings of a head, which gives better labels.
        epochs: Passes over the data for an adapter; default: 3.
        learning_rate: Of an adapter; default: 2e-4.
        batch_size: Sequences of a step, into which several examples go.
        lora_r: Rank of an adapter; default: 16.
        seed: Of an adapter's first weights and of the order.
        instruction: What stands before each text for an adapter.
        chat: Whether an adapter's prompt is in the model's chat format.
    """
    pairs = read_examples(data)
    held_out = [] if valid_data is None else read_examples(valid_data)
    names = _split(labels) if labels else list(dict.fromkeys(pair.label.strip() for pair in pairs))
    if unknown := [p.label for p in (*pairs, *held_out) if p.label.strip() not in names]:
        raise InputError(f"the label {unknown[0]!r:.60} is none of {', '.join(names)}")
    of_lora: dict[str, object] = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "lora_r": lora_r,
        "instruction": instruction,
    }
    if not lora:
        if flags := [name for name, value in of_lora.items() if value is not None]:
            raise InputError(f"--{flags[0]} is for an adapter: give --lora too")
        llama = model.build()
        head = ClassifierHead.train(llama, pairs, l2=l2, echo=echo)
        head.save(out)
        console.say(f"{out}: {', '.join(head.labels)}, of {len(pairs)} examples")
        if held_out:
            _report(held_out, [r.label for r in head.classify(llama, [p.text for p in held_out])])
        return
    if model.adapter or model.quantize or model.dtype:
        raise InputError("--adapter, --quantize and --dtype are not for training an adapter")
    config = TrainConfig(
        epochs=epochs or 3,
        batch_size=batch_size or 1,
        learning_rate=learning_rate,
        seed=seed,
        lora=LoraConfig(seed=seed, r=lora_r or LoraConfig.r),
    )
    base = model.model or bundled_model()
    train_adapter(
        out,
        base,
        pairs,
        names,
        config,
        held_out=held_out,
        device=model.device,
        instruction=instruction,
        chat=chat,
    )
    console.say(f"{out}: an adapter for {', '.join(names)}, of {len(pairs)} examples")
    if held_out:
        llama = dataclasses.replace(model, adapter=out).build()
        found = classify(llama, [pair.text for pair in held_out], **adapter_prompt(out))
        _report(held_out, [result.label for result in found])


def _split(labels: str) -> list[str]:
    return [label.strip() for label in labels.replace("，", ",").split(",")]


def _print(line: str, entry: dict[str, str], result: Any, as_json: bool) -> None:
    """The line, or the entry and its result as JSON."""
    if as_json:
        given = {f"given_{key}" if key == "label" else key: text for key, text in entry.items()}
        found = dataclasses.asdict(result)
        line = json.dumps(given | found, ensure_ascii=False)
    console.say(line)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _report(held_out: Sequence[LabelledText], found: Sequence[str]) -> None:
    right = sum(pair.label.strip() == label for pair, label in zip(held_out, found, strict=True))
    console.say(f"right of {len(held_out)} held-out texts: {right / len(held_out):.1%}")


def _notice_cut(reasons: Sequence[str], max_gen_len: int) -> None:
    if cut := sum(reason == "length" for reason in reasons):
        console.notice(f"{cut} of {len(reasons)} are cut off at {max_gen_len} tokens (max_gen_len)")
