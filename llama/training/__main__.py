"""`torchrun -m llama.training` is `llama train`."""

from llama.cli import run
from llama.training.command import train_command

run(train_command, name="llama train")
