"""Features after chosen blocks, handed over in the forms that timm's ``forward_intermediates`` has."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def as_intermediates(
    taps: list[Tensor],
    features: Tensor | None,
    num_prefix_tokens: int,
    grid: Sequence[int],
    output_fmt: str,
    output_dict: bool,
) -> list[Tensor] | tuple[Tensor, list[Tensor]] | dict[str, Any]:
    """What timm returns for tokens after some blocks.

    Args:
        taps: Tokens after each chosen block, (B, P + N, C).
        features: Tokens at the end, (B, P' + N, C); None: intermediates only.
        num_prefix_tokens: P, those of ``taps`` to return beside the N of the grid; 0 for none.
        grid: (rows, cols), N = rows * cols.
        output_fmt: "NCHW" for maps (B, C, rows, cols), "NLC" for (B, N, C).
        output_dict: A dict with timm's keys.

    Returns:
        Intermediates alone, (features, intermediates) or a dict; an intermediate is a tensor, or with prefix tokens the
        pair of the grid's and theirs (B, P, C).
    """
    prefix = [tokens[:, :num_prefix_tokens] for tokens in taps]
    maps: list[Any] = [tokens[:, num_prefix_tokens:] for tokens in taps]
    if output_fmt == "NCHW":
        maps = [y.reshape(y.shape[0], grid[0], grid[1], y.shape[2]).permute(0, 3, 1, 2).contiguous() for y in maps]
    if output_dict:
        result: dict[str, Any] = {"image_intermediates": maps}
        if num_prefix_tokens:
            result["image_intermediates_prefix"] = prefix
        return result if features is None else {**result, "image_features": features}
    if num_prefix_tokens:
        maps = list(zip(maps, prefix, strict=True))
    return maps if features is None else (features, maps)
