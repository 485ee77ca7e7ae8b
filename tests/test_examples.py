"""The scripts at the top level, run as a user runs them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
    assert all(len(answer.strip()) > len("Assistant:") for answer in answers)


@pytest.mark.parametrize("script", [CHAT, TEXT])
def test_metas_flags(script: str, checkpoint: Path) -> None:
    code, out, err = run(
        script,
        *("--ckpt_dir", checkpoint, "--tokenizer_path", checkpoint / "tokenizer.model"),
        *("--max_seq_len", "512", "--max_batch_size", "6", "--max_gen_len", "2"),
        *("--temperature", "0", "--top_p", "0.5"),
    )
    assert code == 0, err
    assert "more than the 64 positions" in err  # the one warning; the random model has 64
    assert out.count("=" * 34) == (5 if script == CHAT else 4)


@pytest.mark.parametrize(("script", "ranks"), [(CHAT, "2"), (CHAT, "4"), (TEXT, "2")])
def test_ranks_print_once_what_one_prints(script: str, ranks: str) -> None:
    one = run(script, "--temperature", "0", "--max_gen_len", "60")
    several = run(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks),
        *(script, "--temperature", "0", "--max_gen_len", "60"),
    )
    assert several[0] == 0, several[2]
    assert several[1] == one[1]
    assert one[1].count("=" * 34) == (5 if script == CHAT else 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--ckpt_dir", "nowhere"], "nowhere is not there"),
        (["--temperature", "-1"], "temperature"),
        (["--tokenizer_path", "nowhere.model"], "nowhere.model"),
        (["--max_seq_len", "8"], r"tokens, but the context is 8 (max_seq_len)"),
        (["--max_seq_len", "0"], "max_seq_len=0 should be greater than 0"),
    ],
)
def test_wrong_arguments_end_in_one_message(change: list[str], message: str) -> None:
    code, _, err = run(CHAT, *change)
    assert code == 1
    assert message in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


def test_an_unknown_flag_and_a_damaged_file(tmp_path: Path) -> None:
    code, _, err = run(CHAT, "--no_such_flag", "3")
    assert code == 2
    assert "no_such_flag" in err
    folder = shutil.copytree(ROOT / "params" / "tiny", tmp_path / "copy")
    weights = folder / "consolidated.00.pth"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, _, err = run(CHAT, "--ckpt_dir", folder)
    assert code == 1
    assert str(weights) in err
    assert "Traceback" not in err
    assert "Traceback" in run(CHAT, "--ckpt_dir", folder, LLAMA_TRACEBACK="1")[2]


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
