"""LoRA adapters: small trained matrices beside frozen weights.

`adapter_files.py` reads and writes adapter folders in the format of `peft`; `adapter_layers.py`
puts adapters beside a model's layers. `llama.checkpoint.load(..., adapter=...)` does both.
"""

from llama.lora.adapter_files import Adapter, open_adapter
from llama.lora.adapter_layers import (
    TARGETS,
    LoraConfig,
    LoRALinear,
    add_lora,
    load_adapter,
    lora_parameters,
    save_adapter,
)

__all__ = [
    "TARGETS",
    "Adapter",
    "LoRALinear",
    "LoraConfig",
    "add_lora",
    "load_adapter",
    "lora_parameters",
    "open_adapter",
    "save_adapter",
]
