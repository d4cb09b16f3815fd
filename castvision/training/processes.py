"""What several processes that train together would get wrong, refused before they start."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torch.distributed import DistError
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import nn

_STARTED_TOGETHER = ("MASTER_ADDR", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "LSB_JOBID", "KUBERNETES_PORT")
"""Variables by which a launcher, or the user, says where the processes of several machines find each other."""
LOST = (
    "another process of the run has ended, and this one with it; what it said stands above, if it said anything; "
    "the same command with --resume goes on from the newest checkpoint"
)


def is_lost_process(error: RuntimeError) -> bool:
    """Whether an error says that another process does not answer; gloo has no class of its own for it."""
    return isinstance(error, DistError) or "Connection closed by peer" in str(error) or "gloo" in str(error)


def check_processes(trainer: Trainer, model: nn.Module, verb: str, *, sync_batchnorm: bool) -> None:
    """Refuse a model or a verb that several processes would not share.

    Args:
        trainer: Made for one process or several.
        model: What is trained.
        verb: "fit", "validate", "test" or "predict".
        sync_batchnorm: Whether the trainer has batch statistics taken over all processes.

    Raises:
        ValueError: Several machines of which none is said to begin, statistics of batches that each process would take
            over its own images alone, or predictions, which all would write to one file; it says what to do instead.
    """
    is_alone = not any(name in os.environ for name in _STARTED_TOGETHER)
    if trainer.num_nodes > 1 and is_alone:
        raise ValueError(
            f"expected {trainer.num_nodes} machines to be started together for trainer.num_nodes={trainer.num_nodes}, "
            "found nothing that says where they meet: use torchrun or SLURM (docs/distributed.md), or set MASTER_ADDR, "
            "MASTER_PORT and NODE_RANK on each"
        )
    if trainer.num_nodes * trainer.num_devices == 1:
        return
    if verb == "predict":
        raise ValueError(
            f"expected one process for predict, which writes one file, got {trainer.num_nodes * trainer.num_devices}; "
            "set trainer.devices: 1, or let castvision predict --cluster share the images out"
        )
    first = next((name for name, module in model.named_modules() if isinstance(module, _BatchNorm)), None)
    if verb != "fit" or first is None:
        return
    if trainer.strategy.root_device.type != "cuda":
        raise ValueError(
            f"expected a model without batch normalisation in several processes on CPUs, got {first}: torch takes its "
            "statistics over all processes on GPUs only; set trainer.devices: 1, or take a model with layer "
            "normalisation, such as a cast_vit"
        )
    if not sync_batchnorm:
        raise ValueError(
            f"expected trainer.sync_batchnorm: true for a model with batch normalisation ({first}) in several "
            "processes: each would take the statistics of its own images alone"
        )
