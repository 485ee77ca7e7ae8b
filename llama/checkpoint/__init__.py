"""Checkpoint folders of any layout: open, load, save, convert, verify and describe them."""

from llama.checkpoint.loading import load_model
from llama.checkpoint.opening import Checkpoint, open_checkpoint
from llama.checkpoint.saving import save_model

__all__ = ["Checkpoint", "load_model", "open_checkpoint", "save_model"]
