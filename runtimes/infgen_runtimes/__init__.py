"""Backends for infgen_rt, one module each. They are found through entry points and not imported from here."""

from infgen_runtimes.telemetry import silence_onnxruntime

# This is done here because every module that imports ONNX Runtime is imported after this one.
silence_onnxruntime()
