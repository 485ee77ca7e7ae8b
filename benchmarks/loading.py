"""How long a checkpoint takes to load, and how much memory, beside transformers.

    python -m benchmarks.loading [--folder DIR] [--rounds 3]

Makes a checkpoint of random numbers with Llama 3.2 1B's shape (bfloat16, output layer of its own:
3.0 GB) in both layouts, reads all of it once so that it is in the file cache, and then loads it in
a fresh process each time, all ways in turns. Peak memory is Linux's VmHWM, mapped pages of
files included, after the load and again after a token has been generated, when every weight has
been touched. The last line is one JSON object. Needs 10 GB of disk, and transformers.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cyclopts
import torch

from llama import console
from llama.checkpoint.meta_layout import read_params
from llama.cli import one_line_errors
from llama.evaluation.random_checkpoint import write_made_up_tokenizer, write_random_checkpoint

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
PEAK = """
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) * 1024
"""
OURS = (
    PEAK
    + """
import json, sys, time
start = time.perf_counter()
import llama.console
imported = time.perf_counter()
model = llama.Llama.build(
    sys.argv[1], dtype="bfloat16", device="cpu", max_batch_size=1, max_seq_len=64
)
built, loaded = time.perf_counter(), peak()
model.generate([[1, 2, 3]], max_gen_len=1, temperature=0)
held = sum({w.data_ptr(): w.nbytes for w in model.model.parameters()}.values())
if llama.console.is_main():
    print(json.dumps({"import": imported - start, "load": built - imported, "peak": loaded,
                      "peak after a token": peak(), "weights": held}))
"""
)
THEIRS = (
    PEAK
    + """
import json, sys, time
start = time.perf_counter()
import torch
from transformers import LlamaForCausalLM
imported = time.perf_counter()
model = LlamaForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
built, loaded = time.perf_counter(), peak()
with torch.no_grad():
    model(torch.tensor([[1, 2, 3]]))
held = sum(w.nbytes for w in model.parameters())
print(json.dumps({"import": imported - start, "load": built - imported, "peak": loaded,
                  "peak after a token": peak(), "weights": held}))
"""
)
CONVERT = (
    PEAK
    + """
import json, sys, time
from llama.checkpoint.convert import convert
start = time.perf_counter()
convert(*sys.argv[1:3], **json.loads(sys.argv[3]))
print(json.dumps({"load": time.perf_counter() - start, "peak": peak()}))
"""
)


def run(script: str, *args: object, ranks: int = 1) -> dict[str, float]:
    """What a fresh process prints as its last line."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(script)
        file.flush()
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        done = subprocess.run(
            [sys.executable, *(launcher if ranks > 1 else ()), file.name, *map(str, args)],
            cwd=ROOT,
            env=ENV,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def main(
    folder: str | None = None, rounds: int = 3, params: str = "params/Llama-3.2-1B/params.json"
) -> None:
    """Makes checkpoints of random numbers in both layouts, then loads and converts them in turns.

    Args:
        folder: for the checkpoints, which stay there; a temporary one if not given.
        rounds: how many times each way of loading takes its turn.
        params: the shape of the checkpoints.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(folder or temporary)
        meta, hf = root / "meta", root / "hf"
        if not meta.exists():
            args = read_params(params)
            write_random_checkpoint(meta, args, tied=False)
            write_made_up_tokenizer(meta / "tokenizer.model", args.vocab_size)
        conversions = {
            "meta to hf": (meta, root / "hf", {"to": "hf"}),
            "hf to meta in 4 shards, float16": (
                *(root / "hf", root / "sharded"),
                {"to": "meta", "shards": 4, "dtype": "float16"},
            ),
        }
        converted = {
            name: run(CONVERT, source, target, json.dumps(options))
            for name, (source, target, options) in conversions.items()
            if not target.exists()
        }
        for path in root.glob("*/*"):
            path.read_bytes()
        cases = {
            "llama, Meta's files": (OURS, meta, 1),
            "llama, Hugging Face's files": (OURS, hf, 1),
            "transformers, its own files": (THEIRS, hf, 1),
            "llama, Meta's files, 2 ranks": (OURS, meta, 2),
            "llama, Hugging Face's files, 2 ranks": (OURS, hf, 2),
        }
        results: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
        for _ in range(rounds):
            for name, (script, path, ranks) in cases.items():
                results[name].append(run(script, path, ranks=ranks))
                time.sleep(0.5)
        medians = {
            name: {key: statistics.median(r[key] for r in found) for key in found[0]}
            for name, found in results.items()
        }
    rows = [["", "load, s", "weights, GB", "peak, GB", "after a token, GB", "allowed, GB"]]
    for name, m in medians.items():
        sizes = [m["weights"], m["peak"], m["peak after a token"], 1.1 * m["weights"] + 0.5e9]
        rows.append([name, f"{m['load']:.2f}", *(f"{size / 1e9:.2f}" for size in sizes)])
    for name, c in converted.items():
        rows.append([f"convert {name}", f"{c['load']:.2f}", "", f"{c['peak'] / 1e9:.2f}"])
    print(console.table(rows))
    print(json.dumps({"torch": torch.__version__, "load": medians, "convert": converted}))


if __name__ == "__main__":
    with one_line_errors():
        cyclopts.run(main)
