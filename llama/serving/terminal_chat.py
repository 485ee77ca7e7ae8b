"""`llama chat` and `llama run`: talking to a model at a terminal, or in a pipe.

    llama chat params/tiny
    llama chat --url http://127.0.0.1:8000
    echo "Tell me a story." | llama run params/tiny
    llama run params/tiny "Tell me a story." > story.txt

`run` with a question prints the answer to standard output and nothing else. Without one, at a
terminal, it is `chat`.
"""

import os
import stat
import sys
from dataclasses import dataclass, fields
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveInt

from llama import console
from llama.checkpoint.bundled import bundled_model
from llama.errors import InputError
from llama.generation import Llama
from llama.serving.chat_models import LocalModel, ServerModel
from llama.serving.chat_session import ChatModel, ChatSession, checked_settings
from llama.serving.terminal_commands import Chat
from llama.serving.terminal_screen import Screen, ending, statistics_line


@Parameter(name="*")
@dataclass(frozen=True)
class ModelOptions:
    """Where the model is, and how it is opened.

    Attributes:
        url: Address of an OpenAI-compatible server, such as http://127.0.0.1:8000; MODEL is then
            the model's name there.
        api_key: The server's key; default: LLAMA_API_KEY or OPENAI_API_KEY of the environment.
        device: cuda, mps or cpu; default: the best there is.
        dtype: bfloat16, float16 or float32.
        quantize: bf12, which rounds nothing, int8 or int4.
        adapter: Folder of a LoRA adapter.
        max_seq_len: Most tokens of a dialog and its answer; default: the model's context.
        kv_cache_dtype: int8 takes near half the memory.
        draft: Folder of a smaller model with the same tokenizer, which makes decoding faster.
    """

    url: str | None = None
    api_key: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    adapter: str | None = None
    max_seq_len: PositiveInt | None = None
    kv_cache_dtype: str | None = None
    draft: str | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class AnswerOptions:
    """How answers are made.

    Attributes:
        system: The system message.
        temperature: 0 always takes the likeliest token, higher values vary more; default: 0.6.
        top_p: Draws from the likeliest tokens that together have this probability; default: 0.9.
        top_k: Draws from so many of the likeliest tokens.
        min_p: Leaves out tokens that are less than this times as likely as the likeliest.
        repetition_penalty: Above 1 repeats less.
        seed: The same seed gives the same answer to the same dialog.
        stop: Text that an answer ends before; may be given several times.
        max_gen_len: Most tokens of an answer; default: to the end of the context.
    """

    system: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: NonNegativeInt | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: Annotated[list[str] | None, Parameter(negative="")] = None
    max_gen_len: PositiveInt | None = None

    def settings(self) -> dict[str, Any]:
        """Those that `ChatSession` calls settings."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "system"}


Stats = Annotated[bool, Parameter(negative="")]


def chat(
    model: str | None = None,
    *,
    open_as: ModelOptions = ModelOptions(),
    answer_as: AnswerOptions = AnswerOptions(),
    stats: Stats = False,
) -> None:
    """A conversation at the terminal; /help lists its commands.

    Args:
        model: Checkpoint folder or name of a pulled model; default: the bundled one.
        stats: Shows tokens per second after each answer.
    """
    session = _session(model, open_as, answer_as)
    Chat(session, Screen(), stats).run()


def run(
    model: str | None = None,
    prompt: str | None = None,
    *,
    open_as: ModelOptions = ModelOptions(),
    answer_as: AnswerOptions = AnswerOptions(),
    stats: Stats = False,
) -> None:
    """Prints the answer to one question; without a question, at a terminal, `llama chat`.

    Args:
        model: Checkpoint folder or name of a pulled model; default: the bundled one.
        prompt: The question; what comes through a pipe stands before it.
        stats: Shows tokens per second on standard error.
    """
    question = _question(prompt)
    if question is None:
        chat(model, open_as=open_as, answer_as=answer_as, stats=stats)
        return
    session = _session(model, open_as, answer_as)
    text = ""
    for text in session.ask(question):
        print(text, end="", flush=True)
    if not text.endswith("\n"):
        print(flush=True)
    assert session.statistics is not None
    if note := ending(session):
        console.notice(note)
    if stats:
        console.notice(statistics_line(session.statistics))


def _question(prompt: str | None) -> str | None:
    """What is piped in, then the prompt; None where neither is, at a terminal."""
    piped = _piped_text() if _is_piped() else ""
    if question := "\n\n".join(part for part in (piped.strip(), (prompt or "").strip()) if part):
        return question
    if prompt is not None:
        raise InputError("the question is empty")
    if sys.stdin is not None and sys.stdin.isatty():
        return None
    raise InputError('no question: echo "..." | llama run MODEL, or llama run MODEL "..."')


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file: a terminal and /dev/null hold no question."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:  # closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _piped_text() -> str:
    with open(0, "rb", closefd=False) as stream:
        data = stream.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text: {error}") from error


def _session(model: str | None, open_as: ModelOptions, answer_as: AnswerOptions) -> ChatSession:
    """The session, once its model is loaded or its server has answered."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError(
            "a chat is one process: serve the model with torchrun (`torchrun ... -m llama serve "
            "MODEL`), and chat with --url"
        )
    settings = {k: v for k, v in answer_as.settings().items() if v is not None}
    checked_settings(settings)  # before the model is loaded
    return ChatSession(_model(model, open_as), answer_as.system, settings)


def _model(name: str | None, options: ModelOptions) -> ChatModel:
    given = {f.name: getattr(options, f.name) for f in fields(options)}
    url, api_key = given.pop("url"), given.pop("api_key")
    if url is not None:
        if wrong := [key for key, value in given.items() if value is not None]:
            raise InputError(f"--{wrong[0]} is for a model in this process, not with --url")
        for variable in ("LLAMA_API_KEY", "OPENAI_API_KEY"):
            api_key = api_key or os.environ.get(variable)
        return ServerModel(url, name, api_key)
    if api_key is not None:
        raise InputError("--api_key is for a server: give its --url")
    path = bundled_model() if name is None else name
    return LocalModel(Llama.build(path, max_batch_size=1, **given), path)
