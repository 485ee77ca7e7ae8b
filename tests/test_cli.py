"""The `llama` command as it is typed. Few tests start a process: pipes, signals and terminals."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from llama import cli
from llama.errors import InputError, InputTypeError, MissingFileError

ROOT = Path(__file__).parents[1]
TINY = ROOT / "params" / "tiny"
COMMANDS = [[], *([name] for name in cli._COMMANDS), ["tokenizer"], ["tokenizer", "train"]]
Command = Callable[..., tuple[int, str, str]]


def start(*command: str, **settings: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **settings,  # type: ignore[call-overload]
    )


def test_the_commands_on_the_bundled_model(tmp_path: Path, run_command: Command) -> None:
    code, out, err = run_command("info", TINY)
    assert (code, err) == (0, "")
    assert out.startswith("tiny: Llama-shaped, 6.72M parameters\n")
    code, out, err = run_command("convert", TINY, tmp_path / "hf", "--to", "hf")
    assert (code, err) == (0, "")
    assert out == f"{tmp_path / 'hf'}: 1 file(s) of weights, 13.4 MB\n"
    code, out, err = run_command("verify", tmp_path / "hf")
    assert (code, err) == (0, "")
    assert out.endswith("/hf: no problems found\n")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_a_terminal(
    command: list[str], run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run_command(*command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(" ".join(["Usage: llama", *command]))
    assert max(map(len, out.splitlines())) <= 80


def test_without_a_command_help_is_printed(run_command: Command) -> None:
    code, out, _ = run_command()
    assert code == 0
    assert out == run_command("--help")[1]


def test_the_version(run_command: Command) -> None:
    assert run_command("--version")[:2] == (0, "0.1.0\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convrt"], 'Unknown command "convrt". Did you mean "convert"?'),
        (["convert", TINY, "NEW", "--shrads", "2"], "--shrads. Did you mean --shards?"),
        (["convert", TINY, "NEW", "--to", "gguf"], '"gguf" for --to. Choose from: "meta", "hf".'),
        (["convert", TINY, "NEW", "--quantize", "int5"], "--quantize"),
        (["convert", TINY, "NEW", "--shards", "0"], '"0" for --shards. Must be > 0'),
        (["convert", TINY, "NEW", "--shards", "2.5"], '--shards: unable to convert "2.5"'),
        (["convert", TINY, "NEW", "--shards=true"], '--shards: unable to convert "true"'),
        (["convert", TINY], "DESTINATION requires an argument"),
        (["info", TINY, "--json=maybe"], '"maybe" into bool'),
        (["info", TINY, "5"], "Unused Tokens: ['5']"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_is_done(
    arguments: list[str], message: str, tmp_path: Path, run_command: Command
) -> None:
    typed = [str(tmp_path / "new") if a == "NEW" else a for a in arguments]
    code, out, err = run_command(*typed)
    assert (code, out) == (2, "")
    assert message in re.sub(r"[\s│]+", " ", err)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["d,e", "1e5", "8", "[1]", "True", "--x y"])
def test_a_path_is_text(
    name: str, tmp_path: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = "d,e" if name.startswith("-") else name
    (tmp_path / source).symlink_to(TINY)
    code, _, err = run_command("convert", source, f"new {name}", "--dtype", "float32")
    assert (code, err) == (0, "")
    assert (tmp_path / f"new {name}" / "params.json").exists()
    assert run_command("info", source)[1].startswith(f"{source}: Llama-shaped")


def test_a_tilde_in_a_path(
    tmp_path: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tiny").symlink_to(TINY)
    assert run_command("convert", "~/tiny", "~/new", "--dtype=float32")[0] == 0
    assert (tmp_path / "new" / "params.json").exists()
    for path in ("~/new", "~/new/params.json"):
        assert run_command("info", path)[0] == 0
    assert run_command("verify", "~/new")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere"], "checkpoint folder nowhere is not there"),
        (["verify", "setup.py"], "checkpoint folder setup.py is a file"),
        (["convert", TINY, "params", "--to", "hf"], "params already exists"),
    ],
)
def test_wrong_input_ends_in_one_message(
    arguments: list[str], message: str, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code, _, err = run_command(*arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
    monkeypatch.setenv("LLAMA_TRACEBACK", "1")
    with pytest.raises((InputError, OSError)):
        run_command(*arguments)


def command_that(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[], None], name: str = "verify"
) -> None:
    """Puts a function in the place of a command."""
    module = types.ModuleType("replaced")
    module.function = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "replaced", module)
    monkeypatch.setitem(cli._COMMANDS, name, ("replaced:function", "Replaced."))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("dim=0 should be more"), "dim=0 should be more"),
        (InputTypeError("dim is a list"), "dim is a list"),
        (MissingFileError("a is not there"), "a is not there"),
        (IsADirectoryError(21, "Is a directory", "a/b"), "a/b: Is a directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("the disk is full"), "the disk is full"),
    ],
)
def test_expected_errors(
    error: Exception, line: str, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command() -> None:
        raise error

    command_that(monkeypatch, command)
    assert run_command("verify") == (1, "", f"error: {line}\n")
    assert run_command("verify", WORLD_SIZE="2", RANK="1")[2] == f"rank 1: error: {line}\n"


@pytest.mark.parametrize("error", [TypeError, ValueError, KeyError, AttributeError])
def test_a_defect_keeps_its_traceback(
    error: type[Exception], run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command() -> None:
        raise error("unsupported operand")

    command_that(monkeypatch, command)
    with pytest.raises(error, match="unsupported operand"):
        run_command("verify")


@pytest.mark.parametrize("name", ["prompt_toolkit", "rich.console", "uvicorn"])
def test_a_missing_library_of_an_extra(
    name: str, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command() -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    command_that(monkeypatch, command)
    expected = f"error: {name} is missing: pip install '.[serve]'\n"
    assert run_command("verify") == (1, "", expected)
    monkeypatch.setenv("LLAMA_TRACEBACK", "1")
    with pytest.raises(ModuleNotFoundError):
        run_command("verify")


def test_ctrl_c_in_a_command(run_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    command_that(monkeypatch, command)
    assert run_command("verify") == (130, "", "\ninterrupted\n")


def test_ctrl_c_while_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import sys, time\nprint('importing', flush=True)\ntime.sleep(60)\n"
    )
    process = start("-m", "llama", "info", str(TINY), env={**os.environ, "PYTHONPATH": tmp_path})
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "\ninterrupted\n")


def test_a_closed_pipe_is_silent() -> None:
    """As in `llama verify params/tiny | head -1`, with more to print than a pipe holds."""
    script = """
import sys
from llama import cli
cli._COMMANDS["verify"] = ("replaced:function", "Replaced.")
import types
sys.modules["replaced"] = module = types.ModuleType("replaced")
def function():
    print("first", flush=True)
    for _ in range(100_000):
        print("a line")
module.function = function
cli.main(["verify"])
"""
    process = start("-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "first\n"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141


def test_help_in_a_closed_pipe_is_silent_and_needs_no_torch() -> None:
    script = """
import sys
from llama import cli
try:
    cli.main(["--help"])
finally:
    assert "torch" not in sys.modules
"""
    process = start("-c", script)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.wait(timeout=60)


def test_a_bar_is_shown_on_a_terminal_for_what_takes_more_than_a_second(tmp_path: Path) -> None:
    script = f"""
import time
from llama import cli
from llama.storage.tensor_files import Entry
write = Entry.write
def slow(self, stream, written):
    time.sleep(0.03)
    write(self, stream, written)
Entry.write = slow
cli.main(["convert", "params/tiny", {str(tmp_path / "new")!r}, "--to", "hf"])
"""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stderr=theirs, timeout=120)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "Converting params/tiny" in shown
    assert "MB/s" in shown
