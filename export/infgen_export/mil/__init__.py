"""Core ML programs run by torch, so that a conversion can be proven where Core ML itself does not exist.

What is interpreted is the saved package: its program and its weight file. Half-precision operations are computed in
float32 and their results rounded to float16, so the rounding between operations is Core ML's while the rounding inside
one, which differs from one Apple device to the next, is not modelled.
"""

from infgen_export.mil.operations import KINDS
from infgen_export.mil.program import Program

__all__ = ["KINDS", "Program"]
