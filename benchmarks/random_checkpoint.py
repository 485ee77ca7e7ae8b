"""A checkpoint of random numbers in the shape of a released model, for speed and memory.

python benchmarks/random_checkpoint.py FOLDER [--params params/Llama-3.2-1B] [--tied]
"""

import base64
import json
import sys
from pathlib import Path

import fire
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from llama.args import weight_shapes
from llama.meta import read_params


def make(folder: str | Path, params: str = "params/Llama-3.2-1B", tied: bool = False) -> None:
    """Writes Meta's layout in bfloat16, with a made-up tokenizer of 128,000 ranks."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    shape = json.loads(Path(__file__).parents[1].joinpath(params, "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(shape))
    tokens = [bytes([i]) for i in range(256)] + [b"%06d" % i for i in range(127744)]
    lines = (b"%s %d\n" % (base64.b64encode(t), i) for i, t in enumerate(tokens))
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    torch.manual_seed(0)
    weights = {}
    for name, size in weight_shapes(read_params(folder / "params.json")).items():
        noise = torch.randn(size, dtype=torch.bfloat16) * 0.02
        weights[name] = torch.ones_like(noise) if len(size) == 1 else noise
    if tied:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    torch.save(weights, folder / "consolidated.00.pth")


if __name__ == "__main__":
    fire.Fire(make)
