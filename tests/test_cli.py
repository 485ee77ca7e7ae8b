"""The `llama` command as it is typed."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = "params/tiny"


def llama(*arguments: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "llama", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_commands_on_the_bundled_model(tmp_path: Path) -> None:
    code, out, err = llama("info", TINY)
    assert (code, err) == (0, "")
    assert out.startswith("tiny: Llama-shaped, 4.66M parameters\n")
    code, out, err = llama("convert", TINY, tmp_path / "hf", "--to", "hf")
    assert (code, err) == (0, "")
    assert out == f"{tmp_path / 'hf'}: 1 file(s) of weights, 9.3 MB\n"
    code, out, err = llama("verify", tmp_path / "hf")
    assert (code, err) == (0, "")
    assert out.endswith("/hf is complete and sound\n")


@pytest.mark.parametrize("command", ["info", "convert", "verify"])
def test_each_command_has_help(command: str) -> None:
    code, _, err = llama(command, "--help")
    assert code == 0
    assert f"llama {command} - " in err


def test_a_flag_that_does_not_exist_is_found_before_anything_is_done(tmp_path: Path) -> None:
    code, out, err = llama("convert", TINY, tmp_path / "new", "--to", "hf", "--shrads", "2")
    assert (code, out) == (2, "")
    assert "--shrads" in err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere"], "checkpoint folder nowhere is not there"),
        (["verify", "setup.py"], "checkpoint folder setup.py is a file"),
        (["convert", TINY, "params", "--to", "hf"], "params is there already"),
        (["convert", "8", "9", "--to", "meta"], "checkpoint folder 8 is not there"),
    ],
)
def test_wrong_arguments_end_in_one_message(arguments: list[str], message: str) -> None:
    code, _, err = llama(*arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_bar_is_shown_on_a_terminal_for_what_takes_more_than_a_second(tmp_path: Path) -> None:
    script = f"""
import time
from llama import cli, storage
write = storage.Entry.write
def slow(self, stream, written):
    time.sleep(0.05)
    write(self, stream, written)
storage.Entry.write = slow
import sys
sys.argv = ["llama", "convert", {TINY!r}, {str(tmp_path / "new")!r}, "--to", "hf"]
cli.main()
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
