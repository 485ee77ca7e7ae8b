"""`Llama`: a checkpoint, ready to complete texts and to chat.

    llama = Llama.build("params/tiny")
    llama.chat_completion([[{"role": "user", "content": "Tell me a story."}]])
    for chunk in llama.chat_completion_stream([[{"role": "user", "content": "Hi!"}]]):
        print(chunk.text, end="")

The calls are those of Meta's package and return what those return, with why each answer ended.
Any number of prompts may be given at once: `max_batch_size` is how many run at a time.
"""

import contextlib
import functools
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, NoReturn, NotRequired, TypedDict

import torch
from torch import Tensor
from typing_extensions import Unpack

from llama import console
from llama.checkpoint.loading import load
from llama.checkpoint.opening import open_checkpoint
from llama.dialog import Dialog, Message, Tool, ToolCall, ToolFormat, default_tool_format
from llama.engine.beam_search import Hypothesis, beam_search
from llama.engine.embedding import embedding_sequences
from llama.engine.engine import Engine
from llama.engine.grammar import Grammar
from llama.engine.request import FinishReason, Sequence, token_ids
from llama.engine.reranking import INSTRUCTION, query_likelihood, query_likelihood_sequences
from llama.engine.sampling_options import SamplingOptions, as_list, requests
from llama.engine.sampling_params import check_limits
from llama.errors import InputError, InputTypeError
from llama.model import Transformer
from llama.tokenizer import ChatFormat, Tokenizer
from llama.tool_calls import ToolCallParser, ToolChoice, ToolUse, whole_answer


class Prediction(TypedDict):
    """What `text_completion` and `chat_completion` return besides the generated text."""

    tokens: NotRequired[list[str]]  # with logprobs: the text that each token completed
    logprobs: NotRequired[list[float]]
    finish_reason: FinishReason


class CompletionPrediction(Prediction):
    """What `text_completion` returns for a prompt."""

    generation: str


class ChatPrediction(Prediction):
    """What `chat_completion` returns for a dialog."""

    generation: Message


class ChatOptions(SamplingOptions, total=False):
    """Settings of chats: how a dialog is written, and what the answer may call.

    `tools` are functions in OpenAI's shape, `builtin_tools` names of Llama 3.1's, `date` what the
    prompt says of today where it offers any. `tool_choice` is "auto", "none", "required" or a
    function's name in OpenAI's shape; without `parallel_tool_calls` an answer has at most one
    call (see `llama.tool_calls.ToolUse`). With `continue_final_message` the answer goes on after
    the dialog's last message, which is the assistant's.
    """

    tools: Iterable[Tool] | None
    builtin_tools: Iterable[str]
    tool_choice: ToolChoice
    parallel_tool_calls: bool
    date: str
    continue_final_message: bool


_CHAT_OPTIONS = [k for k in ChatOptions.__annotations__ if k not in SamplingOptions.__annotations__]


@dataclass(frozen=True)
class Chunk:
    """New text of the answer to prompt number `index`; `finish_reason` with its last.

    `tool_calls` are those that have become whole.
    """

    index: int
    text: str
    finish_reason: FinishReason | None
    tool_calls: tuple[ToolCall, ...] = ()


class Generation(tuple[list[list[int]], list[list[float]] | None]):
    """What `generate` returns: (tokens, logprobs), and `finish_reason` of each prompt beside it."""

    finish_reason: list[FinishReason]


class Llama:
    """A model with its tokenizer."""

    @staticmethod
    def build(
        ckpt_dir: str | Path,
        tokenizer_path: str | Path | None = None,
        max_seq_len: int | None = None,
        max_batch_size: int | None = None,
        model_parallel_size: int | None = None,
        seed: int = 1,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        quantize: str | None = None,
        adapter: str | Path | None = None,
        kv_cache_dtype: str | None = None,
        kv_memory: int | None = None,
        prefix_memory: int | None = None,
        prefix_folder: str | Path | None = None,
        draft: str | Path | None = None,
        tool_format: ToolFormat | None = None,
    ) -> "Llama":
        """Loads the checkpoint in the folder `ckpt_dir`, under torchrun or in plain python.

        Defaults: the folder's own `tokenizer.model`, the model's own context, 8 prompts at a time,
        all running processes, the best device, and bfloat16 where that device computes it (float32
        for a small model on a CPU; see `select_dtype`). `quantize` is bf12, which on a CPU stores
        bfloat16 in 12 bits and rounds nothing, or int8 or int4, on a CPU or an NVIDIA GPU
        (`llama.quantization`): weights are packed while they are read, or have been by
        `llama convert`. `adapter` is the folder of a LoRA adapter (see `llama.lora`), which is kept
        apart from the weights. With `kv_cache_dtype` int8 the KV cache takes near half the memory
        of bfloat16 (see `Int8KVCache`). `seed` is what the draws of all later calls follow from.
        `kv_memory` and `prefix_memory` are bytes: for keys and values of running requests (see
        `Engine`), and of prompts that later ones may begin with (0 for none; see `PrefixStore`),
        which `prefix_folder` keeps for later processes. `draft` is the folder of a smaller model
        with the same tokenizer, which makes decoding faster and no answer different. `tool_format`
        is how prompts offer functions, "json" or "pythonic" (see `ChatFormat`); by default what
        the model was trained with.
        Raises FileNotFoundError or ValueError, naming the file and the values, for what is missing,
        damaged or does not fit.
        """
        check_limits(max_batch_size, max_seq_len)
        checkpoint = open_checkpoint(ckpt_dir)
        tokenizer = checkpoint.open_tokenizer(tokenizer_path)
        model = load(
            checkpoint,
            device=device,
            dtype=dtype,
            quantize=quantize,
            adapter=adapter,
            max_seq_len=max_seq_len,
            max_batch_size=8 if max_batch_size is None else max_batch_size,
            model_parallel_size=model_parallel_size,
            kv_cache_dtype=kv_cache_dtype,
        )
        smaller = None
        if draft is not None:
            small = open_checkpoint(draft)
            vocabularies = tokenizer.vocabulary, small.open_tokenizer(None).vocabulary
            one, other = ([v.piece(i) for i in range(v.n_words)] for v in vocabularies)
            if one != other:
                raise InputError(f"the tokenizer in {draft} is not that of {ckpt_dir}")
            smaller = load(small, device=device, dtype=dtype, quantize=quantize, max_batch_size=1)
        llama = Llama(
            model,
            tokenizer,
            seed,
            kv_memory,
            prefix_memory,
            prefix_folder,
            draft=smaller,
            tool_format=tool_format,
        )
        llama._checkpoint = checkpoint.folder.path, adapter
        held, args = llama.engine.memory.positions, model.params
        if held < args.max_batch_size * args.max_seq_len:
            console.notice(
                f"keys and values of {held:,} tokens fit into memory, of {args.max_batch_size} "
                f"requests of {args.max_seq_len:,}; what does not fit waits (kv_memory)"
            )
        return llama

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        seed: int = 1,
        kv_memory: int | None = None,
        prefix_memory: int | None = None,
        prefix_folder: str | Path | None = None,
        draft: Transformer | None = None,
        tool_format: ToolFormat | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        args = model.params
        self.formatter = ChatFormat(tokenizer, tool_format or default_tool_format(args))
        self.engine = Engine(
            model,
            tokenizer,
            args.max_batch_size,
            args.max_seq_len,
            kv_memory=kv_memory,
            prefix_memory=prefix_memory,
            prefix_folder=prefix_folder,
            draft=draft,
        )
        self._seeds = random.Random(seed)
        self._checkpoint: tuple[str, str | Path | None] | None = None  # with its adapter

    @functools.cached_property
    def fingerprint(self) -> str:
        """The identity of the weights: `Checkpoint.fingerprint` of what `Llama.build` opened.

        Another dtype or format that weights are packed into while they are read leaves it as it
        is. Raises InputError for a model that is not of `Llama.build`, or has an adapter.
        """
        if self._checkpoint is None:
            raise InputError("only a model that Llama.build opened has a fingerprint")
        path, adapter = self._checkpoint
        if adapter is not None:
            raise InputError(f"with the adapter {adapter} a model has no fingerprint: merge it")
        return open_checkpoint(path).fingerprint

    def __reduce__(self) -> NoReturn:
        raise InputTypeError(
            "a Llama can't be copied or pickled, because its engine runs in one process: call "
            "Llama.build in the other process"
        )

    def generate(
        self,
        prompt_tokens: Iterable[Iterable[int]],
        max_gen_len: int | None = None,
        temperature: float = 0.6,
        top_p: float | None = 0.9,
        logprobs: bool = False,
        echo: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Generation:
        """Tokens that follow each prompt, with `logprobs` also the logs of their probabilities.

        An answer ends at a stop token or stop string, which is not part of it (`stop`), or after
        `max_gen_len` tokens or at the end of the context (`length`); 0 generates nothing. `echo`
        puts the prompt's tokens, and their logprobs, in front; the first token's is 0.0.
        Probabilities are the model's own, before temperature and the other settings. An answer
        does not depend on the other prompts: with a `seed` it is the same whatever else is in the
        call. Raises InputError or InputTypeError that names the prompt or the setting.
        """
        ids = self._token_prompts(prompt_tokens)
        settings = {"temperature": temperature, "top_p": top_p, **options}
        sequences = self.requests("prompt_tokens[{}]", ids, settings, max_gen_len, logprobs, echo)
        prompts = [s.prompt if echo else [] for s in self._finish(sequences)]
        tokens = [prompt + s.tokens for prompt, s in zip(prompts, sequences, strict=True)]
        scores = [s.prompt_logprobs + s.logprobs for s in sequences] if logprobs else None
        result = Generation((tokens, scores))
        result.finish_reason = [_reason(s) for s in sequences]
        return result

    def text_completion(
        self,
        prompts: Iterable[str],
        temperature: float = 0.6,
        top_p: float | None = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        echo: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> list[CompletionPrediction]:
        """The text that follows each prompt; arguments and errors as for `generate`.

        With `logprobs` also its tokens' texts, which joined give `generation`, and logprobs.
        """
        ids = self._text_prompts(prompts)
        settings = {"temperature": temperature, "top_p": top_p, **options}
        sequences = self.requests("prompts[{}]", ids, settings, max_gen_len, logprobs, echo)
        return [{"generation": s.text, **_prediction(s, logprobs)} for s in self._finish(sequences)]

    def chat_completion(
        self,
        dialogs: Iterable[Dialog],
        temperature: float = 0.6,
        top_p: float | None = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        **options: Unpack[ChatOptions],
    ) -> list[ChatPrediction]:
        """The assistant's next message in each dialog; otherwise as `text_completion`.

        Where it calls functions it has `tool_calls`, whose arguments are JSON text. The message
        and its results, with the role tool, are then appended to the dialog for the next call.
        """
        settings = {"temperature": temperature, "top_p": top_p, **options}
        requests, parsers = self._chat_requests(dialogs, settings, max_gen_len, logprobs)
        messages: list[Message] = [{"role": "assistant", "content": ""} for _ in requests]
        for chunk in self._run(requests, parsers):
            message = messages[chunk.index]
            message["content"] += chunk.text
            if chunk.tool_calls:
                message["tool_calls"] = [*message.get("tool_calls", ()), *chunk.tool_calls]
        return [
            {"generation": message, **_prediction(request, logprobs)}
            for message, request in zip(messages, requests, strict=True)
        ]

    def beam_search(
        self,
        prompt: str | Iterable[int],
        beams: int = 4,
        n_best: int = 1,
        length_penalty: float = 1.0,
        max_gen_len: int = 64,
    ) -> list[Hypothesis]:
        """The most likely answers to a text or to token ids, best first, with their scores.

        See `llama.engine.beam_search`; `tokenizer.decode` makes text of a hypothesis's tokens.
        """
        ids = self._text_prompts([prompt])[0] if isinstance(prompt, str) else prompt
        tokens = token_ids("prompt", ids)
        return beam_search(self.engine, tokens, beams, n_best, length_penalty, max_gen_len)

    def embed(
        self, texts: Iterable[str], *, echo: bool = True, adapter: str | None = None
    ) -> Tensor:
        """The embedding of each text, float32 (n, dim) on the CPU, each of length 1.

        A vector does not depend on the other texts. See `llama.engine.embedding`. Raises
        ContextLengthError for a text that is too long; with `echo` it is read twice.
        """
        items = as_list("texts", texts, (), "text")
        sequences = embedding_sequences(self.tokenizer, items, echo=echo, adapter=adapter)
        for i, sequence in enumerate(sequences):
            self.engine.check(sequence, f"texts[{i}]" + ", read twice (echo)," * echo)
        return torch.stack(
            [s.embedding for s in self._finish(sequences) if s.embedding is not None]
        )

    def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        instruction: str = INSTRUCTION,
        adapter: str | None = None,
    ) -> list[float]:
        """How relevant each document is to the query, between 0 and 1, in their order.

        See `llama.engine.reranking`. Raises ContextLengthError for a document that is too long.
        """
        items = as_list("documents", documents, (), "document")
        sequences = query_likelihood_sequences(
            self.tokenizer, query, items, instruction, adapter=adapter
        )
        for i, sequence in enumerate(sequences):
            self.engine.check(sequence, f"documents[{i}], with the query,")
        return [query_likelihood(sequence) for sequence in self._finish(sequences)]

    def generate_stream(
        self,
        prompt_tokens: Iterable[Iterable[int]],
        max_gen_len: int | None = None,
        temperature: float = 0.6,
        top_p: float | None = 0.9,
        echo: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Chunk]:
        """As `generate`, yielding the text of all answers as it comes.

        The chunks of one answer, joined, are its whole text; each has at least one, and its last
        has the `finish_reason`. Wrong arguments raise at the call, before the first chunk. A
        stream that is closed early ends its answers.
        """
        ids = self._token_prompts(prompt_tokens)
        settings = {"temperature": temperature, "top_p": top_p, **options}
        return self._run(self.requests("prompt_tokens[{}]", ids, settings, max_gen_len, echo=echo))

    def text_completion_stream(
        self,
        prompts: Iterable[str],
        temperature: float = 0.6,
        top_p: float | None = 0.9,
        max_gen_len: int | None = None,
        echo: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Chunk]:
        """As `text_completion`, in chunks as `generate_stream` yields them."""
        ids = self._text_prompts(prompts)
        settings = {"temperature": temperature, "top_p": top_p, **options}
        return self._run(self.requests("prompts[{}]", ids, settings, max_gen_len, echo=echo))

    def chat_completion_stream(
        self,
        dialogs: Iterable[Dialog],
        temperature: float = 0.6,
        top_p: float | None = 0.9,
        max_gen_len: int | None = None,
        **options: Unpack[ChatOptions],
    ) -> Iterator[Chunk]:
        """As `chat_completion`, in chunks as `generate_stream` yields them.

        A call comes when it is whole.
        """
        settings = {"temperature": temperature, "top_p": top_p, **options}
        return self._run(*self._chat_requests(dialogs, settings, max_gen_len))

    def _token_prompts(self, prompt_tokens: Iterable[Iterable[int]]) -> list[list[int]]:
        prompts = as_list("prompt_tokens", prompt_tokens, Integral, "prompt")
        return [token_ids(f"prompt_tokens[{i}]", prompt) for i, prompt in enumerate(prompts)]

    def _text_prompts(self, prompts: Iterable[str]) -> list[list[int]]:
        texts = as_list("prompts", prompts, (), "prompt")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputTypeError(f"prompts[{i}] must be a string, got {text!r:.60}")
            if not text:
                raise InputError(
                    f"prompts[{i}] is empty; to generate from nothing, call "
                    "generate([[tokenizer.bos_id]])"
                )
        return [self.tokenizer.encode(text, bos=True, eos=False) for text in texts]

    def _chat_requests(
        self,
        dialogs: Iterable[Dialog],
        settings: Mapping[str, Any],
        max_gen_len: int | None,
        logprobs: bool = False,
    ) -> tuple[list[Sequence], list[ToolCallParser] | None]:
        """Requests for answers, and the parsers of their calls if there may be any."""
        chat = {key: value for key, value in settings.items() if key in _CHAT_OPTIONS}
        settings = {key: value for key, value in settings.items() if key not in chat}
        use = ToolUse(
            chat.pop("tools", None),
            chat.pop("tool_choice", "auto"),
            builtin_tools=chat.get("builtin_tools", ()),
            parallel=chat.pop("parallel_tool_calls", True),
        )
        settings = with_call_grammar(settings, use, self.formatter)
        chat |= {"tools": use.tools, "builtin_tools": use.builtin_tools}
        prompts = []
        for i, dialog in enumerate(as_list("dialogs", dialogs, Mapping, "dialog")):
            try:
                prompts.append(self.formatter.encode_dialog_prompt(dialog, **chat))
            except InputError as error:
                raise type(error)(f"dialogs[{i}]: {error}") from error
        sequences = self.requests("dialogs[{}]", prompts, settings, max_gen_len, logprobs)
        if not use:
            return sequences, None
        start = settings.get("prefix") or ""
        parsers = [use.parser(self.formatter, s.prompt, s.sample_index, start) for s in sequences]
        return sequences, parsers

    def requests(
        self,
        name: str,
        prompts: list[list[int]],
        settings: Mapping[str, Any],
        max_gen_len: int | None,
        logprobs: bool = False,
        echo: bool = False,
    ) -> list[Sequence]:
        """One checked request for each prompt, and for each of `n`; none runs yet.

        See `llama.engine.sampling_options.requests`. Without a `seed` in `settings` the draws
        follow from that of `build`.
        """
        if settings.get("seed") is None:  # other draws in each call
            settings = {**settings, "seed": self._seeds.getrandbits(32)}
        return requests(self.engine, name, prompts, settings, max_gen_len, logprobs, echo)

    def _finish(self, sequences: list[Sequence]) -> list[Sequence]:
        for _ in self._run(sequences):
            pass
        return sequences

    def _run(
        self, sequences: list[Sequence], parsers: list[ToolCallParser] | None = None
    ) -> Iterator[Chunk]:
        finished: set[Sequence] = set()
        numbers = {sequence: i for i, sequence in enumerate(sequences)}
        try:
            self.engine.add(*sequences)
            for changed in self.engine.run(sequences):
                for sequence in changed:
                    if sequence in finished:
                        continue
                    index = numbers[sequence]
                    calls: list[ToolCall] = []
                    if parsers is None:
                        reason = sequence.finish_reason  # before the text, which may be added to
                        text = sequence.take_text()
                    else:
                        reason, text, calls = _parsed(sequence, parsers[index])
                    if sequence.error is not None:
                        raise sequence.error
                    if reason:
                        finished.add(sequence)
                    if text or calls or reason:
                        yield Chunk(index, text, reason, tuple(calls))
        finally:
            for sequence in sequences:
                self.engine.cancel(sequence)


def with_call_grammar(
    settings: Mapping[str, Any], use: ToolUse, formatter: ChatFormat
) -> dict[str, Any]:
    """The settings of a chat, with the grammar that its answers follow where they may call.

    Beside a JSON schema that they have, an answer is one call or matches that schema; any other
    grammar stays as it is, and calls are what it allows. Raises InputError where a grammar stands
    beside a call that is required.
    """
    rules = use.grammar_rules(formatter)
    grammar = settings.get("grammar")
    if rules is None:
        return dict(settings)
    if not isinstance(grammar, Grammar):
        return {**settings, "grammar": Grammar(lark=rules) if grammar is None else grammar}
    if use.is_required:
        raise InputError("a grammar and a required call exclude each other: leave one out")
    schema = grammar.json_schema
    if isinstance(schema, str):
        with contextlib.suppress(ValueError):  # the engine says what is wrong with it
            schema = json.loads(schema)
    if not isinstance(schema, dict):
        return dict(settings)
    return {**settings, "grammar": Grammar(json_schema=use.call_or_answer_schema(schema))}


def _parsed(
    sequence: Sequence, parser: ToolCallParser
) -> tuple[FinishReason | None, str, list[ToolCall]]:
    """Why a sequence is finished, if it is, its new text and the calls that have become whole."""
    reason, tokens = sequence.take_tokens()
    events = [event for token in tokens for event in parser.feed(token.id, token.text)]
    return (reason, *whole_answer(events + (parser.finish() if reason else [])))


def _reason(sequence: Sequence) -> FinishReason:
    assert sequence.finish_reason is not None
    return sequence.finish_reason


def _prediction(sequence: Sequence, logprobs: bool) -> Prediction:
    if not logprobs:
        return {"finish_reason": _reason(sequence)}
    shown = sequence.prompt_token_texts if sequence.prompt_logprobs else []
    return {
        "tokens": shown + sequence.token_texts,
        "logprobs": sequence.prompt_logprobs + sequence.logprobs,
        "finish_reason": _reason(sequence),
    }
