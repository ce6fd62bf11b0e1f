"""Backends for infgen_rt, one module each; they are found through entry points, not imported from here."""

from infgen_runtimes.telemetry import silence_onnxruntime

# Here, because every module that imports ONNX Runtime is imported after this.
silence_onnxruntime()
