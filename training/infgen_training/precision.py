"""Mixed precision on devices that support it."""

from __future__ import annotations

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes natively in bfloat16.

    Other devices emulate bfloat16, and are then several times slower than in float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # PyTorch has no public function that tells this for CPUs, so this calls a private one of its oneDNN bindings.
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def mixed(device: torch.device, wanted: bool = True) -> torch.autocast:
    """A context of mixed bfloat16 precision if it is wanted and the device supports it, and of float32 otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and has_bfloat16(device))
