"""Tiles run by torch, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from castvision.inference.runtimes import Pixels


class TorchRuntime:
    """See `castvision.inference.runtimes.Runtime`.

    Args:
        device: Where the predictor is.
        precision: "bf16" runs it under autocast.
    """

    xp: Any = torch

    def __init__(self, device: torch.device, precision: str = "fp32") -> None:
        self.device: Any = device
        self.is_half = precision == "bf16"

    def session(self) -> AbstractContextManager[Any]:
        """See `Runtime`."""
        return torch.inference_mode()

    def put(self, values: Pixels) -> Any:
        """See `Runtime`."""
        return torch.from_numpy(values).to(self.device)

    def take(self, values: Any) -> Pixels:
        """See `Runtime`."""
        array: Pixels = values.cpu().numpy()
        return array

    def run(self, predict: Callable[[], Any]) -> Any:
        """See `Runtime`."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_half):
            return predict()

    def check(self, output: Any) -> None:
        """See `Runtime`.

        Raises:
            TypeError: No tensor.
        """
        if not isinstance(output, Tensor):
            raise TypeError(f"expected the predictor to return a tensor, got {type(output).__name__}; wrap it")

    def single(self, values: Any) -> Any:
        """See `Runtime`."""
        return values.float()

    def softmax(self, values: Any) -> Any:
        """See `Runtime`."""
        return values.softmax(dim=1)

    def best(self, values: Any) -> tuple[Pixels, Pixels]:
        """See `Runtime`."""
        best, label = values.max(dim=0)
        return self.take(best), self.take(label)


def runtime_of(predictor: Callable[..., Any], device: torch.device | str | None, precision: str) -> TorchRuntime:
    """Where a predictor runs: on the device that is asked for, or its own, or the CPU."""
    if device is not None:
        return TorchRuntime(torch.device(device), precision)
    parameter = next(predictor.parameters(), None) if isinstance(predictor, nn.Module) else None
    return TorchRuntime(torch.device("cpu") if parameter is None else parameter.device, precision)
