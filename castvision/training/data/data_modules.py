"""Every data module we ship, so that configurations may name the classes bare."""

from __future__ import annotations

from castvision.training.data.dense import MazeDataModule, PathfinderSegDataModule, RegionDataModule
from castvision.training.data.image_folder import ImageFolderDataModule
from castvision.training.data.lra import LRAImageDataModule, LRAPathfinderDataModule
from castvision.training.data.multilabel import MultiLabelCsvDataModule
from castvision.training.data.named_data import NamedDataModule
from castvision.training.data.pathfinder import PathfinderDataModule
from castvision.training.data.segmentation_data import CocoDataModule, SegmentationFolderDataModule
from castvision.training.data.windows import WindowDataModule

__all__ = [
    "CocoDataModule",
    "ImageFolderDataModule",
    "LRAImageDataModule",
    "LRAPathfinderDataModule",
    "MazeDataModule",
    "MultiLabelCsvDataModule",
    "NamedDataModule",
    "PathfinderDataModule",
    "PathfinderSegDataModule",
    "RegionDataModule",
    "SegmentationFolderDataModule",
    "WindowDataModule",
]
