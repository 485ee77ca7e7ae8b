"""How long a checkpoint takes to load, and how much memory, beside transformers.

    python benchmarks/loading.py [--folder DIR] [--rounds 3]

Makes a checkpoint of random numbers with Llama 3.2 1B's shape (bfloat16, output layer of its own:
3.0 GB) in both layouts, reads all of it once so that it is in the file cache, and then loads it in
a fresh process each time, one way after the other. Peak memory is Linux's VmHWM, mapped pages of
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

import fire
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from llama.bench.inputs import make_checkpoint, make_tokenizer
from llama.checkpoint.meta_layout import read_params

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
import llama
imported = time.perf_counter()
model = llama.Llama.build(
    sys.argv[1], dtype="bfloat16", device="cpu", max_batch_size=1, max_seq_len=64
)
built, loaded = time.perf_counter(), peak()
model.generate([[1, 2, 3]], max_gen_len=1, temperature=0)
held = sum({w.data_ptr(): w.nbytes for w in model.model.parameters()}.values())
if llama.parallel.is_main():
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
from llama.convert import convert
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


def main(folder: str | None = None, rounds: int = 3) -> None:
    """Makes the checkpoints in `folder`, else in a temporary one, then loads and converts them."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(folder or temporary)
        meta, hf = root / "meta", root / "hf"
        if not meta.exists():
            args = read_params(ROOT / "params" / "Llama-3.2-1B" / "params.json")
            make_checkpoint(meta, args, tied=False)
            make_tokenizer(meta / "tokenizer.model", args.vocab_size)
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
    print(f"{'':40}{'load s':>8}{'GB held':>9}{'peak GB':>9}{'+ a token':>11}{'allowed':>9}")
    for name, m in medians.items():
        allowed = 1.1 * m["weights"] / 1e9 + 0.5
        print(
            f"{name:40}{m['load']:8.2f}{m['weights'] / 1e9:9.2f}{m['peak'] / 1e9:9.2f}"
            f"{m['peak after a token'] / 1e9:11.2f}{allowed:9.2f}"
        )
    for name, c in converted.items():
        print(f"convert {name:32}{c['load']:8.2f}{'':9}{c['peak'] / 1e9:9.2f}")
    print(json.dumps({"torch": torch.__version__, "load": medians, "convert": converted}))


if __name__ == "__main__":
    fire.Fire(main)
