"""Dense tasks made while training, endless and exact: mark the path, the way, the region under a dot, what was copied.

Each asks for information from all over the image: what a pixel is depends on a dot, or on a twin, that may lie an
image's width away.
"""

from castvision.data.synthetic.copy_move import CopyMoveDataset
from castvision.data.synthetic.dataset import DenseBatch, DenseDataset
from castvision.data.synthetic.maze import MazeDataset
from castvision.data.synthetic.pathfinder.dataset import PathfinderSegDataset
from castvision.data.synthetic.region import RegionDataset

__all__ = [
    "CopyMoveDataset",
    "DenseBatch",
    "DenseDataset",
    "MazeDataset",
    "PathfinderSegDataset",
    "RegionDataset",
]
