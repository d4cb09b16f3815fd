"""Calls of clustered attention drawn at random: every form, option, dtype, mask and grid, logits up to 1e4."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from castvision.ops import AttentionOptions, Routing, cast_attention, make_options
from castvision.ops.options import ANCHOR_SELECTIONS
from castvision.ops.partitions import BALANCED, cluster_grid

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MAGNITUDES = (0.0, 1.0, 30.0, 1e3, 1e4)
CONTENTS = ("normal", "whole numbers", "equal tokens", "a loud key")
MASKS = ("none", "some tokens", "some tokens and an image", "all")
FORMS = ("streamed", "by chunks of one window", "as on a GPU", "a window at a time", "at once")
OF_TOKENS = ("q", "k", "v", "q_route", "k_route", "phi")
"""Operands with one row a token; surrogates are shared by the images."""


@dataclass
class Drawn:
    """One call of `cast_attention`.

    Attributes:
        operands: By the name of the argument: q, k, v (B, P + N, H, D), and what else the options ask for.
        options: The choices.
        arguments: The rest of the call.
        magnitude: The largest logit of the tokens.
        form: Which implementation of near and far.
        weight: Of the outputs in the scalar that is differentiated, (B, P + N, H, D).
    """

    operands: dict[str, Tensor]
    options: AttentionOptions
    arguments: dict[str, Any]
    magnitude: float
    form: str
    weight: Tensor = field(default_factory=lambda: torch.zeros(()))

    @property
    def scale(self) -> float:
        return float(self.arguments["scale"] or self.operands["q"].shape[3] ** -0.5)

    def run(self, operands: dict[str, Tensor] | None = None, **more: Any) -> tuple[Tensor, Routing]:
        return cast_attention(**(operands or self.operands), options=self.options, **{**self.arguments, **more})

    def gradients(self, operands: dict[str, Tensor] | None = None, **more: Any) -> dict[str, Tensor]:
        """The output, and the gradients of all operands."""
        leaves = {name: x.detach().requires_grad_() for name, x in (operands or self.operands).items()}
        out, _ = self.run(leaves, **more)
        loss = (out * self.weight.to(out.dtype)).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}

    def with_tokens(self, where: Tensor, value: float) -> dict[str, Tensor]:
        """Operands whose tokens at ``where`` (B, N) hold ``value``; prefix tokens stay."""
        held = {}
        for name, x in self.operands.items():
            held[name] = x
            if name in OF_TOKENS:
                rows = F.pad(where, (x.shape[1] - where.shape[1], 0))
                held[name] = x.masked_fill(rows.view(*rows.shape, *[1] * (x.ndim - 2)), value)
        return held


def any_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@st.composite
def near_far_options(draw: st.DrawFn) -> dict[str, Any]:
    chosen: dict[str, Any] = {"neighborhood": draw(any_of("window", "window", "window", "cluster"))}
    chosen["summaries"] = draw(any_of("mean", "query_weighted", "query_weighted", "none"))
    chosen["surrogates"] = draw(any_of("sampled", "sampled", "learned", "averaged"))
    kinds = list(BALANCED) if chosen["surrogates"] != "averaged" else ["sa_topk"]
    if chosen["neighborhood"] == "window":
        kinds = ["nearest", *kinds]
        chosen |= {"window_size": draw(any_of(None, 1, 2, 3, 4)), "shift_windows": draw(st.booleans())}
    chosen |= {"assignment": draw(any_of(*kinds)), "refinements": draw(any_of(0, 1, 2))}
    return chosen | {"anchors": draw(any_of(0, 0, 1, 3, 40)), "anchor_selection": draw(any_of(*ANCHOR_SELECTIONS))}


@st.composite
def paper_options(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "attention": "paper",
        "surrogates": "learned",
        "assignment": draw(any_of("topk", "topk", *BALANCED)),
        "summaries": draw(any_of("surrogate_weighted", "none")),
        "activation": draw(any_of("softmax", "laplace")),
        "laplace_norm": draw(st.booleans()),
    }


@st.composite
def cases(draw: st.DrawFn, least_images: int = 0, *, is_masked: bool = False) -> Drawn:
    """A call; ``is_masked``: some tokens, or all, are hidden."""
    rows, cols = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    grid: list[int] | None = draw(any_of(None, [rows, cols], [rows, cols], [rows, cols, 2, 3]))
    tokens = rows * cols + (6 if grid is not None and len(grid) > 2 else 0)
    options = draw(st.one_of(near_far_options(), near_far_options(), paper_options()))
    options |= {"num_clusters": draw(any_of(None, 1, 2, 5, tokens))}
    options |= {"routing_score": draw(any_of("affinity", "linear"))}
    clusters = _number_of_clusters(options, grid or [1, tokens])
    if options["assignment"] not in ("nearest", "blocks") and draw(st.booleans()):
        fewest = min(clusters, options["num_clusters"] or clusters)
        least = 1 if options["assignment"] == "topk" else -(-tokens // fewest)
        options["cluster_size"] = draw(st.integers(least, tokens + 1))
    batch, prefix = draw(st.integers(least_images, 3)), draw(st.integers(0, 2))
    arguments: dict[str, Any] = {"grid_size": grid, "num_prefix_tokens": prefix, "seed": draw(st.integers(0, 9))}
    arguments["scale"] = draw(any_of(None, None, 0.3))
    shape = (batch, prefix + tokens, draw(any_of(1, 2)), draw(any_of(1, 3, 4)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    content, magnitude = draw(any_of(*CONTENTS)), draw(any_of(*MAGNITUDES))
    has_routes = options["surrogates"] == "learned" or draw(st.booleans())
    operands = _operands(shape, tokens, clusters if options["surrogates"] != "sampled" else 0, content, generator)
    if options["surrogates"] == "averaged":
        operands["surrogate_tokens"] = operands["surrogate_tokens"][0]
    unwanted = ([] if has_routes else ["q_route", "k_route"]) + ([] if options["surrogates"] == "learned" else ["phi"])
    operands = {name: x for name, x in operands.items() if name not in unwanted}
    if options["surrogates"] == "sampled":
        del operands["surrogate_tokens"]
    mask = _mask(draw(any_of(*MASKS[is_masked:])), batch, tokens, generator)
    case = Drawn(operands, make_options(**options), {**arguments, "token_mask": mask}, magnitude, draw(any_of(*FORMS)))
    case.weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    dtype = draw(any_of(*DTYPES))
    case.operands = {name: x.to(dtype) for name, x in _loud(operands, magnitude, case.scale).items()}
    return case


def _number_of_clusters(options: dict[str, Any], grid: list[int]) -> int:
    """M; 3 where it is open and parameters fix it."""
    if options["assignment"] == "blocks" or options["surrogates"] == "sampled":
        down, across = cluster_grid(grid[0], grid[1], options["num_clusters"], 2.0)
        return down * across + (len(grid) > 2 and options["assignment"] == "blocks")
    return int(options["num_clusters"] or 3)


def _operands(
    shape: tuple[int, int, int, int], tokens: int, clusters: int, content: str, generator: torch.Generator
) -> dict[str, Tensor]:
    """Every operand there may be, float64."""
    batch, length, heads, width = shape
    shapes = {name: shape for name in ("q", "k", "v")}
    shapes |= {name: (batch, tokens, heads, width) for name in ("q_route", "k_route")}
    values = {name: torch.randn(each, generator=generator, dtype=torch.float64) for name, each in shapes.items()}
    values["phi"] = torch.randn(batch, tokens, 1, generator=generator, dtype=torch.float64)
    values["surrogate_tokens"] = torch.randn(heads, clusters, width, generator=generator, dtype=torch.float64)
    if content == "whole numbers":
        values = {name: x.round() for name, x in values.items()}
    if content == "equal tokens":
        values = {n: x[:, :1].expand_as(x).clone() if n in OF_TOKENS else x for n, x in values.items()}
    if content == "a loud key":
        values["k"][:, length - tokens] *= 12
        values["q"] += 2
    return values


def _loud(operands: dict[str, Tensor], magnitude: float, scale: float) -> dict[str, Tensor]:
    """The operands with their largest logit brought to ``magnitude``."""
    logits = torch.einsum("bnhd,bmhd->bhnm", operands["q"], operands["k"]).abs() * scale
    root = (magnitude / float(logits.amax().clamp(min=1e-3))) ** 0.5 if logits.numel() else 1.0
    both = ("q", "k", "q_route", "k_route", "surrogate_tokens")
    return {name: x * root if name in both else x for name, x in operands.items()}


def _mask(kind: str, batch: int, tokens: int, generator: torch.Generator) -> Tensor | None:
    if kind == "none":
        return None
    mask = torch.rand(batch, tokens, generator=generator) > 0.3
    mask[: {"some tokens": 0, "some tokens and an image": 1, "all": batch}[kind]] = False
    return mask
