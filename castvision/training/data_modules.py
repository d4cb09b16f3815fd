"""Every data module we ship, so that configurations may name the classes bare."""

from __future__ import annotations

from castvision.training.dense import MazeDataModule, PathfinderSegDataModule, RegionDataModule
from castvision.training.image_folder import ImageFolderDataModule
from castvision.training.lra import LRAImageDataModule, LRAPathfinderDataModule
from castvision.training.multilabel import MultiLabelCsvDataModule
from castvision.training.named_data import NamedDataModule
from castvision.training.pathfinder import PathfinderDataModule
from castvision.training.segmentation_data import CocoDataModule, SegmentationFolderDataModule
from castvision.training.windows import WindowDataModule

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
