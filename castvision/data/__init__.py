"""Data: reading files, data sets, the way from an array to a model's tensor, synthetic tasks; without Lightning."""

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
