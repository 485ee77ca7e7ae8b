"""Checkpoint folders of any layout: pull, load, save, convert, merge, verify and describe them.

    model = load("Llama-3.2-1B", quantize="int4")

`opening.py` reads headers, with what `meta_layout.py` and `huggingface_config.py` know of the two
layouts; `loading.py` makes the model of this rank and `saving.py` writes one. `pulling.py` gets
models from hubs: `hubs.py` and `meta_urls.py` say what there is, by the requests of
`hub_session.py`, and `download.py` gets one file. The commands are in `convert.py`, `verify.py`,
`info.py` and `model_commands.py`.
"""

from llama.checkpoint.loading import load
from llama.checkpoint.opening import Checkpoint, open_checkpoint
from llama.checkpoint.saving import save_model

__all__ = ["Checkpoint", "load", "open_checkpoint", "save_model"]
