"""The scripts at the top level, run as a user runs them."""

import functools
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures import run_ranks

ROOT = Path(__file__).parents[1]
CHAT, TEXT = "example_chat_completion.py", "example_text_completion.py"


def start(*command: str | Path, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*command: str | Path, **env: str) -> tuple[int, str, str]:
    process = start(*command, **env)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize("script", [CHAT, TEXT])
def test_without_arguments_the_bundled_model_answers(script: str) -> None:
    code, out, err = run(script)
    assert (code, err) == (0, "")
    answers = [part.partition("> ")[2] for part in out.split("=" * 34)[:-1]]
    assert len(answers) == (5 if script == CHAT else 4)
    assert all(answer.strip().removeprefix("Assistant:").strip() for answer in answers)


def run_script(run_main: Callable, script: str, *flags: str | Path, **env: str) -> tuple:
    """The same in this process."""
    main = functools.partial(runpy.run_path, str(ROOT / script), run_name="__main__")
    return run_main(main, script, *flags, **env)


@pytest.mark.parametrize("script", [CHAT, TEXT])
def test_metas_flags(script: str, checkpoint: Path, run_main: Callable) -> None:
    code, out, err = run_script(
        *(run_main, script),
        *("--ckpt_dir", checkpoint, "--tokenizer_path", checkpoint / "tokenizer.model"),
        *("--max_seq_len", "512", "--max_batch_size", "6", "--max_gen_len", "2"),
        *("--temperature", "0", "--top_p", "0.5"),
    )
    assert code == 0, err
    assert "more than the 64 positions" in err  # the one warning; the random model has 64
    assert out.count("=" * 34) == (5 if script == CHAT else 4)


def on_a_rank(script: str, *flags: str) -> None:
    sys.argv = [script, *flags]
    runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.mark.parametrize(("script", "ranks"), [(CHAT, 2), (CHAT, 4), (TEXT, 2)])
def test_ranks_print_once_what_one_prints(
    script: str, ranks: int, run_main: Callable, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ("--temperature", "0", "--max_gen_len", "12")
    one = run_script(run_main, script, *flags)
    assert (one[0], one[2]) == (0, "")
    assert one[1].count("=" * 34) == (5 if script == CHAT else 4)
    run_ranks(ranks, on_a_rank, script, *flags)
    assert capfd.readouterr().out == one[1]


def test_torchrun_prints_once_what_one_process_prints(run_main: Callable) -> None:
    flags = ("--temperature", "0", "--max_gen_len", "9")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    code, out, err = run(*torchrun, TEXT, *flags)
    assert code == 0, err
    assert out == run_script(run_main, TEXT, *flags)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--ckpt_dir", "nowhere"], "nowhere is not there"),
        (["--temperature", "-1"], "temperature"),
        (["--tokenizer_path", "nowhere.model"], "nowhere.model"),
        (["--max_seq_len", "8"], r"tokens, but the context is 8 (max_seq_len)"),
        (["--max_seq_len", "0"], "max_seq_len must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_end_in_one_message(
    change: list[str], message: str, run_main: Callable
) -> None:
    code, _, err = run_script(run_main, CHAT, *change)
    assert code == 1
    assert message in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


def test_an_unknown_flag_and_a_damaged_file(tmp_path: Path, run_main: Callable) -> None:
    code, _, err = run_script(run_main, CHAT, "--no_such_flag", "3")
    assert code == 2
    assert "no_such_flag" in err
    folder = shutil.copytree(ROOT / "params" / "tiny", tmp_path / "copy")
    weights = folder / "consolidated.00.pth"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, _, err = run_script(run_main, CHAT, "--ckpt_dir", folder)
    assert code == 1
    assert str(weights) in err
    assert "Traceback" not in err
    with pytest.raises(ValueError, match=re.escape(str(weights))):
        run_script(run_main, CHAT, "--ckpt_dir", folder, LLAMA_TRACEBACK="1")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_quietly() -> None:
    process = start(CHAT, "--temperature", "0")
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (0, 130)  # 0 if it was faster
    assert "Traceback" not in err


@pytest.mark.parametrize("script", [CHAT, TEXT])
def test_ctrl_c_while_torch_is_imported_ends_quietly(script: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    code, out, err = run(script, PYTHONPATH=str(tmp_path))
    assert (code, out, err) == (130, "", "\ninterrupted\n")
