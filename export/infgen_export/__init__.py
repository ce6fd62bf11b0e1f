"""From a trained checkpoint to a verified bundle of graphs that ``infgen_rt`` runs.

from infgen_export.export import export
report = export("checkpoint", "bundle", targets=["onnx"])
"""
