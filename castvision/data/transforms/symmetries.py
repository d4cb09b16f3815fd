"""The eight symmetries of the square: of images, and of where a window lies in one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from castvision.arrays import namespace

if TYPE_CHECKING:
    from torch import Tensor


class Symmetry(NamedTuple):
    """Mirror the columns or not, then turn counter-clockwise.

    Attributes:
        turns: By so many times 90°.
        is_flipped: Left and right are exchanged before.
    """

    turns: int = 0
    is_flipped: bool = False

    def of(self, values: Tensor) -> Tensor:
        """Apply to the last two axes of (..., height, width); an odd number of turns exchanges their lengths."""
        xp = namespace(values)
        turned: Tensor = xp.rot90(xp.flip(values, (-1,)) if self.is_flipped else values, self.turns, (-2, -1))
        return turned

    def undo(self, values: Tensor) -> Tensor:
        """The inverse of ``of``."""
        xp = namespace(values)
        turned: Tensor = xp.rot90(values, -self.turns, (-2, -1))
        return xp.flip(turned, (-1,)) if self.is_flipped else turned

    def of_window(self, window: Tensor) -> Tensor:
        """Where a window lies once its image is mirrored and turned.

        Args:
            window: (..., 4): top, left, height and width as fractions of the image.

        Returns:
            The same of the new image.
        """
        top, left, height, width = (window[..., index] for index in range(4))
        if self.is_flipped:
            left = 1 - left - width
        for _ in range(self.turns % 4):
            top, left, height, width = 1 - left - width, top, width, height
        stacked: Tensor = namespace(window).stack([top, left, height, width], -1)
        return stacked
