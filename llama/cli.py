"""The `llama` command. Each subcommand is a function, and its flags are the function's parameters.

`llama convert --help` shows the flags of one; `--batch_size` and `--batch-size` are the same flag,
and `LLAMA_TRAIN_BATCH_SIZE=8` in the environment sets it for `llama train`. Nothing heavy is
imported before a subcommand is known.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

from llama import __version__

# Subcommand: where its function is, and its line in `llama --help`.
_COMMANDS = {
    "pull": ("llama.checkpoint.model_commands:pull", "A model from a hub, by its name."),
    "list": ("llama.checkpoint.model_commands:list_models", "The models that are here."),
    "show": ("llama.checkpoint.model_commands:show", "Where a model is from, and its files."),
    "rm": ("llama.checkpoint.model_commands:rm", "Removes pulled models."),
    "info": ("llama.checkpoint.info:info", "What a model is, and the memory it takes."),
    "verify": ("llama.checkpoint.verify:verify", "Whether a checkpoint is complete and undamaged."),
    "convert": ("llama.checkpoint.convert:convert", "From one layout, dtype or format to another."),
    "merge": ("llama.checkpoint.convert:merge", "An adapter added to the weights of its model."),
    "train": (
        "llama.training.command:train_from_command_line",
        "A model from text, or a fine-tuned one.",
    ),
    "serve": ("llama.serving.serve:serve", "To OpenAI, Anthropic and Ollama clients."),
    "eval": ("llama.evaluation.evaluate:evaluate", "Perplexity, multiple choice, lm-eval's tasks."),
    "chat": ("llama.serving.terminal_chat:chat", "A conversation with a model at the terminal."),
    "run": ("llama.serving.terminal_chat:run", "One question, in an argument or a pipe."),
    "next": ("llama.inspection.next_tokens:next_tokens", "What may come next after a text."),
    "agents": ("llama.agents.agents_command:agents", "A team of agents over HTTP, from a file."),
    "bench": ("llama.evaluation.speed:bench", "How fast a model is on this machine."),
}
# Commands that have subcommands: their line in `llama --help`, and where those are.
_GROUPS = {
    "tokenizer": (
        "A tokenizer from text.",
        {"train": ("llama.training.command:tokenizer_command", "Trains one on text.")},
    ),
    "rag": (
        "Search and answers from your documents.",
        {
            "add": ("llama.retrieval.rag_commands:add", "Files and folders into an index."),
            "list": ("llama.retrieval.rag_commands:list_documents", "The documents of an index."),
            "rm": ("llama.retrieval.rag_commands:rm", "Removes documents from an index."),
            "search": ("llama.retrieval.rag_commands:search", "Passages that fit a question."),
            "ask": (
                "llama.retrieval.rag_commands:ask",
                "An answer, with what supports each sentence.",
            ),
            "explain": ("llama.retrieval.rag_commands:explain", "How a question is answered."),
            "eval": (
                "llama.retrieval.rag_evaluation:rag_eval",
                "How good search and answers are, on a file of questions.",
            ),
        },
    ),
    "tasks": (
        "Small jobs: classify, answer, translate.",
        {
            "classify": ("llama.tasks.task_commands:classify_command", "Which label fits a text."),
            "answer": (
                "llama.tasks.task_commands:answer_command",
                "Answers to questions, from a context or without one.",
            ),
            "translate": (
                "llama.tasks.task_commands:translate_command",
                "Texts in another language.",
            ),
            "train": (
                "llama.tasks.task_commands:train_command",
                "A classifier, from labelled examples.",
            ),
        },
    ),
}
# Libraries that the package installs only with an extra.
_EXTRA_OF = dict.fromkeys(("fastapi", "prompt_toolkit", "rich", "uvicorn"), "serve")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command with `arguments`, those of the process if None."""
    with one_line_errors():
        import cyclopts

        app = cyclopts.App(
            "llama",
            "The Llama text models.",
            version=__version__,
            config=[cyclopts.config.Env("LLAMA_"), _refuse_fractions],
            default_parameter=cyclopts.Parameter(show_env_var=False),
            suppress_keyboard_interrupt=False,  # one_line_errors handles Ctrl-C
        )
        for name, (function, summary) in _COMMANDS.items():
            app.command(function, name=name, help=summary)
        for name, (summary, commands) in _GROUPS.items():
            group = cyclopts.App(name, summary)
            for command, (function, line) in commands.items():
                group.command(function, name=command, help=line)
            app.command(group)
        app(arguments, result_action="return_none")
        sys.stdout.flush()


def _refuse_fractions(app: Any, commands: Any, arguments: Any) -> None:
    """Raises for a fraction where a whole number belongs: cyclopts rounds 2.5 to 2 in silence."""
    from cyclopts import CoercionError

    for argument in arguments:
        types = _types_in(argument.hint)
        for token in argument.tokens if int in types and float not in types else ():
            if "." in token.value:
                raise CoercionError(token=token, target_type=int, argument=argument)


def _types_in(hint: Any) -> set[Any]:
    """A type and those that it is made of: of `Sequence[PositiveInt] | None` also int and None."""
    return {hint}.union(*map(_types_in, get_args(hint)))


def run(function: Callable[..., None]) -> None:
    """Calls the function of a script with the flags of its command line, by fire.

    fire reports an unknown flag only after it has called the function, so the call is deferred.
    """
    calls: list[Callable[[], None]] = []

    @functools.wraps(function)
    def later(*args: Any, **kwargs: Any) -> None:
        calls.append(functools.partial(function, *args, **kwargs))

    with one_line_errors():
        import fire

        fire.Fire(later)
        for call in calls:
            call()


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns input errors into one message on standard error and exit status 1.

    The same for errors of the system (a file, the network, memory). LLAMA_TRACEBACK=1 keeps their
    traceback. A library of an extra that is not installed is named with the extra.
    Any other exception is a defect and always keeps it. Ctrl-C ends the process with
    status 130, a closed pipe (`| head`) with 141 and no message.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(141)
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None or os.environ.get("LLAMA_TRACEBACK"):
            raise
        print(f"error: {error.name} is missing: pip install '.[{extra}]'", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        from llama.errors import InputError, message

        torch = sys.modules.get("torch")
        expected = (InputError, OSError, *([torch.OutOfMemoryError] if torch else []))
        if os.environ.get("LLAMA_TRACEBACK") or not isinstance(error, expected):
            raise
        many = os.environ.get("WORLD_SIZE", "1") != "1"
        rank = f"rank {os.environ.get('RANK', '?')}: " if many else ""
        print(f"{rank}error: {message(error)}", file=sys.stderr)
        sys.exit(1)
