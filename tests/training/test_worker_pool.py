import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from fixtures import SENTENCES

from llama import Tokenizer
from llama.training import worker_pool
from llama.training.tokenized import tokenize
from llama.training.worker_pool import worker_map

ROOT = Path(__file__).parents[2]


def test_little_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_function", lambda n: -n)
    taken = []

    def items() -> Iterator[int]:
        for n in range(20):
            taken.append(n)
            yield n

    with ThreadPoolExecutor(2) as executor:
        results = worker_pool._map(executor, 4, items())
        assert next(results) == 0
        assert len(taken) == 5
        assert list(results) == [-n for n in range(1, 20)]


@pytest.mark.skipif(sys.platform == "win32", reason="has no masks of signals")
def test_workers_start_where_interrupts_wait() -> None:
    masks = []

    class Starting(ThreadPoolExecutor):
        def submit(self, *args: object) -> object:
            signal.raise_signal(signal.SIGINT)
            script = "import signal; print(signal.SIGINT in signal.pthread_sigmask(0, []))"
            masks.append(subprocess.check_output([sys.executable, "-c", script]))
            return super().submit(*args)

    with Starting(1) as executor, pytest.raises(KeyboardInterrupt):
        worker_pool._start(executor, 1)
    assert masks == [b"True\n"]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_worker_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise BrokenProcessPool("died")

    monkeypatch.setattr(worker_pool, "_map", broken)
    monkeypatch.setattr(worker_pool, "_start", lambda *args: None)
    reported = pytest.raises(ChildProcessError, match=r"a worker process died: .*; workers=1")
    with reported, worker_map(abs, workers=2) as call:
        call([1])


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_an_interruption_leaves_neither_files_nor_processes(
    tokenizer: Tokenizer, tmp_path: Path, sign: signal.Signals
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text("\n<|endoftext|>\n".join(SENTENCES * 100))
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import itertools
        from llama import Tokenizer
        from llama.training import tokenized
        if __name__ == "__main__":
            tokenized._BATCH_BYTES = 500
            read = tokenized.read_raw
            def endless(*args):
                for number in itertools.count():
                    yield from read(*args)
                    if number == 1:  # more than is begun at a time: the first batch is done
                        print("begun", flush=True)
            tokenized.read_raw = endless
            tokenized.tokenize({str(data)!r}, Tokenizer({tokenizer.model_path!r}), workers=2)
        """)
    )
    # A terminal sends Ctrl-C to the whole group.
    running = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "begun\n"
        if sign == signal.SIGINT:
            os.killpg(running.pid, sign)
        else:
            running.kill()
        _, printed = running.communicate(timeout=60)  # until no process holds the pipe any more
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    if sign == signal.SIGINT:
        assert printed.count("Traceback") == 1
        assert printed.endswith("KeyboardInterrupt\n")
        assert [path.name for path in data.iterdir()] == ["a.txt"]
    else:
        tokenize(data, tokenizer)
        assert len(list(data.iterdir())) == 2  # what was half done has been replaced
