"""`torchrun -m llama.training`: the command `llama train` on each of the processes."""

import runpy
import sys

sys.argv.insert(1, "train")
runpy.run_module("llama", run_name="__main__")
