"""Training with Lightning: tasks, data modules, callbacks, the run; nothing else of the package imports Lightning.

Configurations name the classes below bare.
"""

from castvision.training.data.classification import (
    ImageFolderDataModule,
    LRAImageDataModule,
    LRAPathfinderDataModule,
)
from castvision.training.data.data_module import ImageDataModule
from castvision.training.data.multilabel import MultiLabelCsvDataModule
from castvision.training.data.named_data import NamedDataModule
from castvision.training.data.objects import InstanceDataModule
from castvision.training.data.pixel_data import CocoDataModule, SegmentationDataModule
from castvision.training.data.slides import SlideDataModule
from castvision.training.data.synthetic import (
    CopyMoveDataModule,
    MazeDataModule,
    PathfinderDataModule,
    PathfinderSegDataModule,
    RegionDataModule,
)
from castvision.training.data.unlabelled import UnlabelledFolderDataModule
from castvision.training.data.windows import WindowDataModule
from castvision.training.tasks.classification import ClassificationTask, MultiLabelTask
from castvision.training.tasks.distillation import DistillationTask
from castvision.training.tasks.instances import InstanceTask
from castvision.training.tasks.segmentation import SegmentationTask
from castvision.training.tasks.slides import SlideTask
from castvision.training.tasks.task import Task

__all__ = [
    "ClassificationTask",
    "CocoDataModule",
    "CopyMoveDataModule",
    "DistillationTask",
    "ImageDataModule",
    "ImageFolderDataModule",
    "InstanceDataModule",
    "InstanceTask",
    "LRAImageDataModule",
    "LRAPathfinderDataModule",
    "MazeDataModule",
    "MultiLabelCsvDataModule",
    "MultiLabelTask",
    "NamedDataModule",
    "PathfinderDataModule",
    "PathfinderSegDataModule",
    "RegionDataModule",
    "SegmentationDataModule",
    "SegmentationTask",
    "SlideDataModule",
    "SlideTask",
    "Task",
    "UnlabelledFolderDataModule",
    "WindowDataModule",
]
