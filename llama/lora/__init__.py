"""LoRA adapters: layers beside frozen weights, and their files."""
