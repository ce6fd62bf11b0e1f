"""PyTorch makes an app larger by gigabytes, and `auto` does not use it. It is there if the app imports it itself."""

excludedimports = ["torch", "safetensors", "infgen_model"]
