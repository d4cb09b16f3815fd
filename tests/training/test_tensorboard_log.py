"""TensorBoard reads the rows of a run in the order in which they were written."""

from __future__ import annotations

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from castvision.training.tensorboard_log import BoardLog


def test_a_second_log_in_the_same_second_is_read_second(tmp_path, monkeypatch):
    """Files are read by name, and a process counts them: its tenth stands before its ninth."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    for first, value in ((0, 1.0), (2, 2.0), (3, 3.0)):
        log = BoardLog(tmp_path, first)
        for step in range(first, first + 4):
            log.log_metrics({"loss": value}, step)
            log.save()
        log.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    rows = [(row.step, row.value) for row in events.Scalars("loss")]
    assert rows == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 3.0), (5, 3.0), (6, 3.0)]
