"""The label of pixels that count nowhere: in no loss, no metric, no statistic. Nothing is imported here."""

from __future__ import annotations

IGNORED = 255
