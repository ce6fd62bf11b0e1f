"""Leaves PyTorch out, which is gigabytes large and which `auto` does not use. An app that imports it still has it."""

excludedimports = ["torch", "safetensors", "infgen_model"]
