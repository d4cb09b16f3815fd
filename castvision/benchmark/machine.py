"""What a figure belongs to: processor, its instructions, accelerator, versions."""

from __future__ import annotations

import os
import platform


def describe_machine() -> dict[str, str | int]:
    """Processor, cores, accelerator and versions, plain values."""
    import timm
    import torch

    import castvision
    from castvision.data.pathfinder.timing import describe_machine as describe_processor

    described: dict[str, str | int] = {
        **describe_processor(),
        "cores": os.cpu_count() or 1,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16": "in hardware" if has_bf16() else "emulated",
        "system": platform.platform(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "castvision": castvision.__version__,
    }
    if torch.cuda.is_available():
        described |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    return described


def find_hardware(device: str) -> frozenset[str]:
    """What goals may ask for and is here, when the run is on ``device``: "cpu", "cpu bf16", "2 cores", "cuda"."""
    if device == "cuda":
        return frozenset({"cuda"})
    found = {"cpu"}
    if has_bf16():
        found.add("cpu bf16")
    if (os.cpu_count() or 1) >= 2:
        found.add("2 cores")
    return frozenset(found)


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 itself; otherwise torch converts every product's operands to fp32."""
    import torch

    cpu = torch.cpu
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
