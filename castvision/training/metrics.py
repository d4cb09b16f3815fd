"""The figures the tasks log, under the names the logs have had from the start; `castvision.metrics` has them all."""

from castvision.metrics import class_table, classification_metrics, metric_key, named_figures, segmentation_metrics

__all__ = ["class_table", "classification_metrics", "metric_key", "named_figures", "segmentation_metrics"]
