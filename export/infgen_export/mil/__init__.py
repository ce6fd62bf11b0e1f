"""Runs Core ML programs in torch, so that conversions can be verified on machines without Core ML.

It interprets the saved package, which consists of a program and a file of weights. Half-precision operations are
computed in float32, and their results are rounded to float16. The rounding between operations is therefore Core ML's.
The rounding inside an operation, which differs between Apple devices, is not modelled.
"""

from infgen_export.mil.operations import KINDS
from infgen_export.mil.program import Program

__all__ = ["KINDS", "Program"]
