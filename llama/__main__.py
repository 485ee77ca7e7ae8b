"""`python -m llama`: the `llama` command where the package is not installed."""

from llama.cli import main

main()
