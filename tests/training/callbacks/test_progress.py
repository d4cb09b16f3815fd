from __future__ import annotations

import logging
import re
from datetime import timedelta
from types import SimpleNamespace

from lightning.pytorch.callbacks import Timer

from castvision.training.callbacks.progress import TrainingBar, seconds_left


def _trainer(total, step=20, accumulate=1, callbacks=()):
    return SimpleNamespace(
        estimated_stepping_batches=total,
        global_step=step,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        current_epoch=2,
        max_epochs=10,
        world_size=1,
        is_global_zero=True,
    )


def test_time_left_by_steps_and_by_the_clock():
    assert seconds_left(_trainer(100), 10.0) == 8.0
    assert seconds_left(_trainer(100, accumulate=4), 10.0) == 32.0
    assert seconds_left(_trainer(float("inf")), 10.0) is None
    assert seconds_left(_trainer(100, callbacks=[Timer(duration=timedelta(seconds=3))]), 10.0) == 3.0


def test_lines_where_there_is_no_terminal(caplog):
    bar = TrainingBar(line_seconds=0.0)
    assert not bar.is_terminal
    with caplog.at_level(logging.INFO, logger="castvision"):
        logging.getLogger("castvision").propagate = True
        bar.on_train_batch_end(_trainer(100), None, {"loss": 0.5}, [range(16)], 0)
    assert re.search(
        r"epoch 3/10 · step 20 · elapsed 0:00:0\d · loss 0\.5000 · images/s [\d,]+\.\d · left", caplog.text
    )
    assert "left" in caplog.text


def test_a_short_epoch_tells_its_speed_too(caplog):
    """Its lines come with the held-out images, before any other is due."""
    bar = TrainingBar(line_seconds=60.0)
    trainer = _trainer(100)
    trainer.state, trainer.sanity_checking, trainer.callback_metrics = SimpleNamespace(fn="fit"), False, {}
    with caplog.at_level(logging.INFO, logger="castvision"):
        logging.getLogger("castvision").propagate = True
        bar.on_train_batch_end(trainer, None, {"loss": 0.5}, [range(16)], 0)
        bar.on_validation_start(trainer, None)
        bar.on_validation_end(trainer, SimpleNamespace(monitor="val/miou"))
    assert re.search(r"epoch 3/10 · step 20 · elapsed 0:00:0\d · images/s [\d,]+\.\d", caplog.text)
