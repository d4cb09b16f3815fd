"""Pathfinder: do two dots mark the ends of one path? A compiled, endless, exactly labelled generator.

The geometry follows the public generator of Linsley, Kim and Serre (https://github.com/drewlinsley/pathfinder) with
Long Range Arena's parameters; the code is our own.
"""

from castvision.data.synthetic.pathfinder.dataset import PathfinderDataset
from castvision.data.synthetic.pathfinder.masks import PathfinderSample, make_pathfinder
from castvision.data.synthetic.pathfinder.spec import Mode, PathfinderSpec

__all__ = ["Mode", "PathfinderDataset", "PathfinderSample", "PathfinderSpec", "make_pathfinder"]
