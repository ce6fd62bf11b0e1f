"""Mixed precision where a device computes in it."""

from __future__ import annotations

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16; elsewhere it is imitated, several times slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # PyTorch has no public word for a processor's, but oneDNN refuses where it cannot.
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def mixed(device: torch.device, wanted: bool = True) -> torch.autocast:
    """Mixed bfloat16 precision on a device, if it is wanted and the device has it; float32 otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and has_bfloat16(device))
