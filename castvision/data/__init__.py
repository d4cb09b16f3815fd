"""Data: the Pathfinder generator, readers of LRA's sets, images of any kind and size. Nothing here needs Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from castvision.data.batch_augmentation import BatchAugmentation as BatchAugmentation
    from castvision.data.coco import CocoSegmentation as CocoSegmentation
    from castvision.data.coco import read_coco as read_coco
    from castvision.data.collate import pad_collate as pad_collate
    from castvision.data.jitter import ChannelJitter as ChannelJitter
    from castvision.data.labels import LabelMap as LabelMap
    from castvision.data.multilabel import MultiLabelDataset as MultiLabelDataset
    from castvision.data.multilabel import read_label_table as read_label_table
    from castvision.data.named import NamedDataset as NamedDataset
    from castvision.data.named import open_named as open_named
    from castvision.data.readers import Georeference as Georeference
    from castvision.data.readers import ImageReader as ImageReader
    from castvision.data.readers import Level as Level
    from castvision.data.readers import open_array as open_array
    from castvision.data.readers import open_image as open_image
    from castvision.data.readers import open_mask as open_mask
    from castvision.data.readers import read_mask as read_mask
    from castvision.data.regions import split_by_block as split_by_block
    from castvision.data.regions import split_by_source as split_by_source
    from castvision.data.segmentation import SegmentationDataset as SegmentationDataset
    from castvision.data.segmentation_files import find_pairs as find_pairs
    from castvision.data.sources import ImageSources as ImageSources
    from castvision.data.statistics import ChannelStatistics as ChannelStatistics
    from castvision.data.transforms import Augmentation as Augmentation
    from castvision.data.transforms import SampleTransform as SampleTransform
    from castvision.data.windows import WindowDataset as WindowDataset

_HOMES = {
    "Augmentation": "transforms",
    "BatchAugmentation": "batch_augmentation",
    "ChannelJitter": "jitter",
    "CocoSegmentation": "coco",
    "LabelMap": "labels",
    "MultiLabelDataset": "multilabel",
    "NamedDataset": "named",
    "SampleTransform": "transforms",
    "SegmentationDataset": "segmentation",
    "find_pairs": "segmentation_files",
    "open_named": "named",
    "pad_collate": "collate",
    "read_coco": "coco",
    "read_label_table": "multilabel",
    "Georeference": "readers",
    "ImageReader": "readers",
    "Level": "readers",
    "open_array": "readers",
    "open_image": "readers",
    "open_mask": "readers",
    "read_mask": "readers",
    "ChannelStatistics": "statistics",
    "ImageSources": "sources",
    "WindowDataset": "windows",
    "split_by_block": "regions",
    "split_by_source": "regions",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a part when it is first asked for: `castvision --help` needs none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
