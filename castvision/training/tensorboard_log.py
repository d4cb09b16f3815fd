"""TensorBoard's log of a run that may be killed, and go on: no row twice, none lost."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import TensorBoardLogger

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = "tensorboard"


class BoardLog(TensorBoardLogger):
    """What was logged after the checkpoint a run goes on from is forgotten; rows are on disk once they are logged.

    Args:
        folder: The run's; rows go to ``tensorboard`` in it.
        step: Steps that are in the checkpoint; 0 for a new run. TensorBoard, and its `EventAccumulator`, leave out
            earlier rows from this step on, which are logged again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        _wait_for_another_second(folder / FOLDER)
        super().__init__(folder, name=FOLDER, version="", purge_step=step)

    def save(self) -> None:
        """Lightning calls it after each row: otherwise up to two minutes of rows would be lost by a kill."""
        super().save()
        self.experiment.flush()


def _wait_for_another_second(folder: Path) -> None:
    """TensorBoard reads files by name: the second, the process, a counter without zeros; in one second, 10 before 9."""
    found = (re.match(r"events\.out\.tfevents\.(\d+)\.", path.name) for path in folder.glob("events.*"))
    newest = max((int(match[1]) for match in found if match), default=0)
    if newest == int(time.time()):  # nothing to do for a clock that was set back
        time.sleep(newest + 1 - time.time())
