"""Backends for infgen_rt, one module each. Entry points name them, so this file does not import them."""

from infgen_runtimes.telemetry import silence_onnxruntime

# This must happen before ONNX Runtime is imported, which only other modules of this package do.
silence_onnxruntime()
