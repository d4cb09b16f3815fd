"""Data: reading files, data sets, the way from an array to a model's tensor, synthetic tasks; without Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castvision.deferred import deferred

if TYPE_CHECKING:
    from castvision.data.datasets.batch import pad_collate
    from castvision.data.datasets.coco import CocoSegmentation, read_coco
    from castvision.data.datasets.multilabel import MultiLabelDataset, read_label_table
    from castvision.data.datasets.named import NamedDataset, open_named
    from castvision.data.datasets.regions import split_by_block, split_by_source
    from castvision.data.datasets.segmentation import SegmentationDataset, find_pairs
    from castvision.data.datasets.sources import ImageSources
    from castvision.data.datasets.windows import WindowDataset
    from castvision.data.reading import Georeference, ImageReader, Level, open_array, open_image, open_mask, read_mask
    from castvision.data.reading.labels import LabelMap
    from castvision.data.reading.overview import make_context
    from castvision.data.transforms.augmentation import Augmentation, SampleTransform
    from castvision.data.transforms.batch_augmentation import BatchAugmentation, ChannelJitter
    from castvision.data.transforms.statistics import ChannelStatistics

__all__ = [
    "Augmentation",
    "BatchAugmentation",
    "ChannelJitter",
    "ChannelStatistics",
    "CocoSegmentation",
    "Georeference",
    "ImageReader",
    "ImageSources",
    "LabelMap",
    "Level",
    "MultiLabelDataset",
    "NamedDataset",
    "SampleTransform",
    "SegmentationDataset",
    "WindowDataset",
    "find_pairs",
    "make_context",
    "open_array",
    "open_image",
    "open_mask",
    "open_named",
    "pad_collate",
    "read_coco",
    "read_label_table",
    "read_mask",
    "split_by_block",
    "split_by_source",
]

__getattr__ = deferred(
    __name__,
    {
        "Augmentation": "castvision.data.transforms.augmentation",
        "BatchAugmentation": "castvision.data.transforms.batch_augmentation",
        "ChannelJitter": "castvision.data.transforms.batch_augmentation",
        "ChannelStatistics": "castvision.data.transforms.statistics",
        "CocoSegmentation": "castvision.data.datasets.coco",
        "Georeference": "castvision.data.reading",
        "ImageReader": "castvision.data.reading",
        "ImageSources": "castvision.data.datasets.sources",
        "LabelMap": "castvision.data.reading.labels",
        "Level": "castvision.data.reading",
        "MultiLabelDataset": "castvision.data.datasets.multilabel",
        "NamedDataset": "castvision.data.datasets.named",
        "SampleTransform": "castvision.data.transforms.augmentation",
        "SegmentationDataset": "castvision.data.datasets.segmentation",
        "WindowDataset": "castvision.data.datasets.windows",
        "find_pairs": "castvision.data.datasets.segmentation",
        "make_context": "castvision.data.reading.overview",
        "open_array": "castvision.data.reading",
        "open_image": "castvision.data.reading",
        "open_mask": "castvision.data.reading",
        "open_named": "castvision.data.datasets.named",
        "pad_collate": "castvision.data.datasets.batch",
        "read_coco": "castvision.data.datasets.coco",
        "read_label_table": "castvision.data.datasets.multilabel",
        "read_mask": "castvision.data.reading",
        "split_by_block": "castvision.data.datasets.regions",
        "split_by_source": "castvision.data.datasets.regions",
    },
)
