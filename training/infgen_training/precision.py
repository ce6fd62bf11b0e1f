"""Mixed precision on devices that support it."""

from __future__ import annotations

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16. Other devices emulate it, several times slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # PyTorch has no public function for CPUs, so oneDNN is asked.
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def mixed(device: torch.device, wanted: bool = True) -> torch.autocast:
    """Mixed bfloat16 precision if it is wanted and the device supports it, else float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and has_bfloat16(device))
