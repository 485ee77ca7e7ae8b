"""Small models that whole tests share, and the cores that tests side by side share."""

import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures import tiny_args, write_tiktoken

from llama import Llama, Tokenizer, Transformer, cli
from llama.checkpoint.saving import save_model

# What a script starts in the background inherits Ctrl-C as ignored, and hands that on. Tests that
# interrupt themselves or their children need it as a terminal's programs have it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Each of the processes that run tests, and what it starts, keeps to its share of the cores.
    threads = max((os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]), 1)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tiktoken(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"))


@pytest.fixture(scope="session")
def checkpoint(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Meta's layout with a random float32 model that has clear preferences."""
    folder = tmp_path_factory.mktemp("checkpoint")
    args = tiny_args(vocab_size=tokenizer.n_words, max_seq_len=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(args)
    for weight in model.parameters():
        weight.data *= 6
    save_model(model, folder, tokenizer.model_path, torch.float32)
    return folder


@pytest.fixture
def llama(checkpoint: Path) -> Llama:
    """That model with a batch of 3, so that four prompts have to wait for each other."""
    return Llama.build(checkpoint, max_batch_size=3, device="cpu", dtype="float32")


def print_warning(message: str, category: type, filename: str, lineno: int, *_: object) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


@pytest.fixture
def run_main(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Calls a program's function in this process, as typed: `run_main(main, "a.py", "--flag")`.

    Returns its exit status and what it has written to standard output and standard error; keyword
    arguments are environment variables. A defect's exception is the test's.
    """

    def run(main: Callable[[], object], *words: str | Path, **env: str) -> tuple[int, str, str]:
        threads = torch.get_num_threads()
        capfd.readouterr()
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            # pytest would keep warnings to itself.
            patch.setattr(warnings, "showwarning", print_warning)
            warnings.simplefilter("always")
            for category in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
                warnings.simplefilter("ignore", category)
            warnings.filterwarnings("ignore", "Cyclopts application invoked without tokens")
            patch.setattr(sys, "argv", [*map(str, words)])
            for name, value in env.items():
                patch.setenv(name, value)
            try:
                main()
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else int(error.code is not None)
            finally:
                torch.set_num_threads(threads)
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def run_command(
    run_main: Callable[..., tuple[int, str, str]],
) -> Callable[..., tuple[int, str, str]]:
    """The `llama` command in this process: `code, out, err = run_command("info", folder)`."""
    return functools.partial(run_main, cli.main, "llama")


@pytest.fixture
def chain(tokenizer: Tokenizer) -> Callable[..., Llama]:
    """Makes a model that writes what it is told: after each token of `script` the next one.

    The last one repeats. Nothing but the newest token counts: embeddings are one-hot, attention
    and feed-forward layers add nothing, and the output layer points from a token to its successor.
    """

    def make(script: list[int], max_batch_size: int = 2, max_seq_len: int = 32) -> Llama:
        size = tokenizer.n_words
        model = Transformer(
            tiny_args(
                dim=size,
                n_layers=1,
                vocab_size=size,
                max_batch_size=max_batch_size,
                max_seq_len=max_seq_len,
            )
        )
        for weight in model.parameters():
            weight.data.zero_()
        model.norm.weight.data.fill_(1)
        model.tok_embeddings.weight.data.copy_(torch.eye(size))
        for token, following in zip(script, [*script[1:], script[-1]], strict=True):
            model.output.weight.data[:, token] = 0
            model.output.weight.data[following, token] = 1
        return Llama(model, tokenizer)

    return make


@pytest.fixture(scope="session")
def bundled() -> Llama:
    """The bundled model, for what a random one can't show."""
    return Llama.build(Path(__file__).parents[1] / "params" / "tiny", device="cpu")
