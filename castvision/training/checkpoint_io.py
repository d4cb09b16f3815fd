"""How Lightning writes and reads the checkpoints of a run: as `castvision.models.checkpoint_file` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from castvision.models import checkpoint_file

if TYPE_CHECKING:
    from collections.abc import Callable


class DurableCheckpointIO(TorchCheckpointIO):
    """Checkpoints are written beside their place and moved there, and their checksums are compared when they are read.

    Lightning's own are written to the system's temporary folder; moving them to another file system is a copy, which a
    full disk cuts short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a file, whole or not at all.

        Raises:
            OSError: It cannot be written; what was there before is as it was.
            ValueError: Any storage options.
        """
        if storage_options is not None:
            raise ValueError(f"expected no storage_options for files on this machine, got {storage_options!r}")
        checkpoint_file.write(checkpoint, path)

    def load_checkpoint(  # Lightning's signature
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a file to the CPU; no code in it is run.

        Raises:
            FileNotFoundError: No such file.
            CheckpointError: Damaged.
        """
        content: dict[str, Any] = checkpoint_file.read(path)
        return content
