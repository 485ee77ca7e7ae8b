"""Checkpoint folders of any layout: load, save, convert, merge, verify and describe them.

    model = load("Llama-3.2-1B", quantize="int4")

`opening.py` reads headers, with what `meta_layout.py` and `huggingface_config.py` know of the two
layouts; `loading.py` makes the model of this rank and `saving.py` writes one. The commands are in
`convert.py`, `verify.py` and `info.py`.
"""

from llama.checkpoint.loading import load
from llama.checkpoint.opening import Checkpoint, open_checkpoint
from llama.checkpoint.saving import save_model

__all__ = ["Checkpoint", "load", "open_checkpoint", "save_model"]
