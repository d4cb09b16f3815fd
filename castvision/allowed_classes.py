"""Whose classes a configuration may name, so that a stranger's file runs nothing but training."""

_LIGHTNING = ("callbacks", "loggers", "plugins", "profilers", "strategies", "accelerators")
ALLOWED = (
    "castvision", "torch.optim", "torch.nn", "timm.optim", "torchmetrics", "lightning.fabric.loggers",
    "lightning.fabric.plugins", "lightning.fabric.strategies", *(f"lightning.pytorch.{name}" for name in _LIGHTNING),
)  # fmt: skip
"""Packages and modules."""
