"""Metrics that callbacks are to watch: whether there are such, before training instead of after its first epoch."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from lightning.pytorch import Callback

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class KnownMonitors(Callback):
    """Refuse a ``monitor`` among the metrics of held-out images that those do not give, once some have been tried."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All metrics of held-out images are there, and no step has been taken.

        Raises:
            ValueError: It names similar ones, or all.
        """
        known = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by the callback connector
            monitor = getattr(callback, "monitor", None)
            if isinstance(monitor, str) and monitor.startswith("val/") and known and monitor not in known:
                near = difflib.get_close_matches(monitor, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
                raise ValueError(f"no metric {monitor!r} for {type(callback).__name__}.monitor: {hint}")


def watches_training(trainer: Trainer) -> bool:
    """Whether a callback of a trainer monitors figures of training images."""
    monitors = (getattr(each, "monitor", None) for each in trainer.callbacks)  # type: ignore[attr-defined]  # as above
    return any(isinstance(monitor, str) and monitor.startswith("train/") for monitor in monitors)
