"""What a registered model costs: parameters, tokens, operations, memory; computed by running it without storage."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class Census:
    """One model at its own size, for one image in fp32.

    Attributes:
        name: As registered.
        input_size: (channels, height, width).
        grid: Tokens down and across, without prefix tokens.
        parameters: With the classifier it is registered with.
        num_classes: Of that classifier.
        weights: Where ``pretrained=True`` finds trained weights; None = there are none.
        gflops: Operations of matrix products, attention and convolutions, in 1e9; a multiply-add is two, so that timm's
            GMACs are half of them.
        memory: Bytes of weights and of the most that stands beside them while predicting.
    """

    name: str
    input_size: tuple[int, int, int]
    grid: tuple[int, int]
    parameters: int
    num_classes: int
    weights: str | None
    gflops: float | None = None
    memory: int | None = None


def census(name: str, *, runs: bool = True) -> Census:
    """Count one model.

    Args:
        name: A registered ViT.
        runs: Also count operations and memory.

    Returns:
        The figures.
    """
    model: Any = timm.create_model(name, device="meta").eval()
    channels, height, width = model.default_cfg["input_size"]
    rows, cols = model.patch_embed.grid_size
    gflops, memory = _run(model, (1, channels, height, width)) if runs else (None, None)
    return Census(
        name=name,
        input_size=(channels, height, width),
        grid=(rows, cols),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_classes=model.num_classes,
        weights=weights_of(model.pretrained_cfg),
        gflops=gflops,
        memory=memory,
    )


def weights_of(config: Mapping[str, Any]) -> str | None:
    """Where a configuration of timm's finds weights."""
    return str(config.get("hf_hub_id") or config.get("url") or config.get("file") or "") or None


def _run(model: Any, shape: tuple[int, ...]) -> tuple[float, int]:
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    flops, peak = FlopCounterMode(display=False), PeakMemory([*model.parameters(), *model.buffers()])
    with torch.no_grad(), flops, peak:
        model(torch.empty(shape, device="meta"))
    return flops.get_total_flops() / 1e9, weights + peak.most


class PeakMemory(TorchDispatchMode):
    """Adds up the tensors that are alive after each operation.

    Args:
        others: Tensors that do not count, nor views of them.

    Attributes:
        most: Bytes, of what was made inside.
    """

    def __init__(self, others: Iterable[torch.Tensor] = ()) -> None:
        base: Any = super()  # it carries no types
        base.__init__()
        self.most = self.alive = 0
        self._others = [value.untyped_storage() for value in others]
        self._known = {storage._cdata for storage in self._others}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and look at what it made."""
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        self.most = max(self.most, self.alive)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.alive += size
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size
