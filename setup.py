"""Packaging: `pip install .`, or `pip install -e .` to work on it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="llama",
    version=re.search(r'__version__ = "(.+)"', (HERE / "llama" / "__init__.py").read_text())[1],
    description="The Llama text models in PyTorch: drop-in, readable, on any device",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["llama", "llama.*"]),
    package_data={"llama.kernels": ["csrc/*.c", "csrc/*.h"], "llama.serving": ["page/*"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.5",
        "fairscale>=0.4.13",
        "numpy",
        "tiktoken>=0.7",
        "sentencepiece>=0.2",
        "fire>=0.5",
        "cyclopts>=4.0",
        "docstring_parser>=0.15",
        "blobfile>=3.0",
        "filelock>=3.12",
        "httpx>=0.27",
        "tqdm>=4.66",
        "typing_extensions>=4.6",
    ],
    entry_points={
        "console_scripts": ["llama = llama.cli:main"],
        "lm_eval.models": ["llama = llama.evaluation.lm_eval_model:LlamaLM"],
    },
    extras_require={
        # The server, constrained answers, and the chat at the terminal.
        "serve": [
            "llguidance>=1.0",
            "fastapi>=0.115",
            "uvicorn>=0.30",
            "prometheus-client>=0.20",
            "prompt_toolkit>=3.0",
            "rich>=13.0",
        ],
        # PDF files in `llama rag`.
        "rag": ["pypdf>=5.0"],
        # Teams of agents, also as tools of MCP servers and with those of others.
        "agents": ["llama[serve]", "mcp>=2.3"],
        "train": ["tokenizers>=0.20", "tensorboard>=2.16", "matplotlib>=3.9"],
        "eval": ["lm-eval>=0.4.10,<0.5"],
        # For benchmarks/: the other programs, their files, and the plots.
        "bench": [
            "transformers>=4.56",
            "llama-cpp-python>=0.3.36",
            "gguf>=0.19",
            "matplotlib>=3.9",
        ],
    },
)
