"""What a figure belongs to: processor, its instructions, accelerator, versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping


def describe_machine() -> dict[str, str | int]:
    """Processor, cores, accelerator and versions, plain values."""
    import timm
    import torch

    import castvision
    from castvision.data.synthetic.pathfinder.timing import describe_machine as describe_processor

    described: dict[str, str | int] = {
        **describe_processor(),
        "cores": os.cpu_count() or 1,
        "instructions": "+".join(find_instructions()),
        "system": platform.platform(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "castvision": castvision.__version__,
    }
    if torch.cuda.is_available():
        described |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    return described


def name_processor(machine: Mapping[str, str | int], device: str) -> str:
    """What a run on ``device`` ran on, of a described machine: "AMD EPYC, AVX512+bf16"."""
    processor = f"{machine['cpu']}, {machine['instructions']}"
    return f"{machine['gpu']} beside {processor}" if device == "cuda" else processor


def find_hardware(device: str) -> frozenset[str]:
    """What goals may ask for and is here, when the run is on ``device``: "cpu", "cpu amx", "2 cores", "cuda"."""
    if device == "cuda":
        return frozenset({"cuda"})
    found = {"cpu"}
    if "AMX" in find_instructions():
        found.add("cpu amx")
    if (os.cpu_count() or 1) >= 2:
        found.add("2 cores")
    return frozenset(found)


def find_instructions() -> list[str]:
    """The vectors torch uses here, such as AVX512, then "bf16" and "AMX" where there are instructions for them."""
    import torch

    found = [torch.backends.cpu.get_cpu_capability()]
    if torch.cpu._is_avx512_bf16_supported():
        found.append("bf16")
    if torch.cpu._is_amx_tile_supported():
        found.append("AMX")
    return found


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 itself; otherwise torch converts every product's operands to fp32."""
    return not {"bf16", "AMX"}.isdisjoint(find_instructions())
