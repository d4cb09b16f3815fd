"""Builds what a key names, ready to be timed or weighed: width 384, 6 heads, batch 1, the most square grid of N tokens.

    op       cast_attention, or scaled_dot_product_attention, on queries, keys and values that are given
    layer    with both projections: CastAttention, or FullAttention on a fused kernel
    peers    the same, and other papers' attention by the word of ``attention=``, as each comes
    block    CastBlock, or the same with the attention's core replaced by the values ("no-core")
    model    a registered model on one image

Ours: "cast" is near and far as it comes, "cast-anchors" the same with 64 anchors, "cast-paper" the paper's attention
over a partition into sqrt(N) clusters of learned surrogates; "windows" are those of "cast" without what is far;
"routing" is what forms the clusters of "cast", alone.
Full attention: "sdpa", on the kernel that torch chooses; "sdpa-head" is the core of one head, "sdpa-thin" a layer of
one head on its share of the width: they stand for sizes where all heads would take minutes.

Beside them stands their arithmetic in floating-point operations, two for a multiply-add: the floor of time, and what
torch's counter cannot follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.record import Key
from castvision.layers import CastAttention, CastBlock, FullAttention
from castvision.models.convert import convert
from castvision.ops import AttentionOptions, cast_attention, make_options
from castvision.ops.partitions import cluster_grid, window_size_for
from castvision.ops.surrogates import form_clusters
from castvision.peers import PEERS, make_peer

WIDTH, HEADS = 384, 6
HEAD_DIM = WIDTH // HEADS
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
VARIANTS = ("cast", "cast-anchors", "cast-paper")


class Subject:
    """A call on inputs that are drawn anew before each run, into the same memory.

    Args:
        call: What to run on the inputs.
        inputs: Leaf tensors, filled from N(0, 1); with gradients for "training".
        phase: "forward" (without gradients) or "training" (forward, then backward from a fixed random gradient).
        module: Whose gradients are dropped before each run.
        blank: Share of the tokens (axis 1) of the first input that are all alike.
    """

    def __init__(
        self,
        call: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        phase: str,
        module: nn.Module | None = None,
        blank: float = 0.0,
    ) -> None:
        self.call, self.inputs, self.training = call, inputs, phase == "training"
        self.module, self.blank = module, blank
        self.grad: Tensor | None = None
        for leaf in inputs:
            leaf.requires_grad_(self.training)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Fresh inputs, no gradients; run inside."""
        self.refill()
        yield

    def refill(self) -> None:
        """Draw the inputs and drop old gradients."""
        if self.module is not None:
            self.module.zero_grad(set_to_none=True)
        with torch.no_grad():
            for leaf in self.inputs:
                leaf.grad = None
                leaf.normal_()
            if self.blank:
                tokens = self.inputs[0]
                drawn = round(tokens.shape[1] * (1 - self.blank))
                tokens[:, drawn:] = tokens[:, max(0, drawn - 1) : max(0, drawn - 1) + 1].clone()

    def run(self) -> None:
        """The call that is timed."""
        if not self.training:
            with torch.no_grad():
                self.call(*self.inputs)
            return
        out = self.call(*self.inputs)
        if self.grad is None:
            self.grad = torch.randn_like(out)
        torch.autograd.backward(out, self.grad)


class ValueAttention(FullAttention):
    """Attention with its core removed: the values go straight to ``proj``; ``qkv`` and ``proj`` do their full work."""

    def forward(self, x: Tensor, *unused: object, **also_unused: object) -> Tensor:
        """x: (B, N, C). Returns (B, N, C)."""
        values = self.qkv(x).unflatten(2, (3, self.attn_dim))[:, :, 2]  # B, N, C
        out: Tensor = self.proj(values)
        return out


class RoutingSubject(Subject):
    """The routing of a CAST layer alone, on the queries and keys the layer makes of its input."""

    def refill(self) -> None:
        """New tokens, projected outside the clock."""
        super().refill()
        layer, x = self.module, self.inputs[0]
        if not isinstance(layer, CastAttention):
            raise TypeError(f"expected a CastAttention, got {type(layer).__name__}")
        with torch.no_grad():
            self.q, self.k, _ = layer.qkv(x).unflatten(2, (3, layer.num_heads, layer.head_dim)).unbind(2)
        self.options, self.grid = layer.options, list(most_square(x.shape[1]))

    def run(self) -> None:
        """Route."""
        form_clusters(self.q, self.k, self.options, self.grid, None, None, None, 0)


def variant_options(name: str, tokens: int) -> dict[str, Any]:
    """Options of the attention that one of ``VARIANTS`` names."""
    if name == "cast-paper":
        return {"attention": "paper", "assignment": "sa_topk", "num_clusters": round(tokens**0.5)}
    if name == "windows":
        return {"summaries": "none"}
    return {"anchors": 64} if name == "cast-anchors" else {}


def make_subject(key: Key) -> Subject:
    """What ``key`` names; its quantity does not matter.

    Raises:
        ValueError: An unknown level or subject.
    """
    if key.level not in _MAKERS:
        raise ValueError(f"expected a level of {', '.join(_MAKERS)}, got {key.level!r}")
    return _MAKERS[key.level](key)


def blank_share(inputs: str) -> float:
    """Share of blank tokens that ``Key.inputs`` names: "random" or, for instance, "50% blank"."""
    return 0.0 if inputs == "random" else float(inputs.removesuffix("% blank")) / 100


def _new(key: Key, *shape: int) -> Tensor:
    return torch.empty(*shape, dtype=DTYPES[key.dtype], device=key.device)


def _make_op(key: Key) -> Subject:
    heads = 1 if key.subject == "sdpa-head" else HEADS
    rows = [_new(key, 1, key.size, heads, HEAD_DIM) for _ in range(3)]  # as qkv lays them out
    if key.subject not in VARIANTS:
        return Subject(_full, rows, key.phase)
    options, grid = make_options(**variant_options(key.subject, key.size)), list(most_square(key.size))
    if options.surrogates == "learned":
        rows += [_new(key, HEADS, options.num_clusters or 1, HEAD_DIM), _new(key, 1, key.size, 1)]

    def call(q: Tensor, k: Tensor, v: Tensor, surrogates: Tensor | None = None, phi: Tensor | None = None) -> Tensor:
        return cast_attention(q, k, v, options, grid, surrogate_tokens=surrogates, phi=phi)[0]

    return Subject(call, rows, key.phase)


def _full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))


def _make_layer(key: Key) -> Subject:
    if key.subject == "sdpa-head":
        return _make_op(key)
    width, heads = (HEAD_DIM, 1) if key.subject == "sdpa-thin" else (WIDTH, HEADS)
    layer: nn.Module
    prefix = 0
    if key.level == "peers" and key.subject in PEERS:
        prefix = PEERS[key.subject].reg_tokens
        layer = make_peer(key.subject, width, heads, {}, qkv_bias=True, num_prefix_tokens=prefix)
    elif key.subject in (*VARIANTS, "windows", "routing"):
        layer = CastAttention(width, heads, qkv_bias=True, **variant_options(key.subject, key.size))
    elif key.subject == "no-core":
        layer = ValueAttention(width, heads, qkv_bias=True)
    elif key.subject in ("sdpa", "sdpa-thin"):
        layer = FullAttention(width, heads, qkv_bias=True)
    else:
        raise ValueError(f"expected a subject of level layer, got {key.subject!r}")
    made = RoutingSubject if key.subject == "routing" else Subject
    call = partial(_prepare(layer, key), grid_size=list(most_square(key.size)))
    return made(call, [_new(key, 1, prefix + key.size, width)], key.phase, layer, blank_share(key.inputs))


def _make_block(key: Key) -> Subject:
    if key.subject not in ("cast", "no-core"):
        raise ValueError(f"expected cast or no-core at level block, got {key.subject!r}")
    block = CastBlock(WIDTH, HEADS, qkv_bias=True)
    if key.subject == "no-core":
        block.attn = ValueAttention(WIDTH, HEADS, qkv_bias=True)
    call = partial(_prepare(block, key), grid_size=list(most_square(key.size)))
    return Subject(call, [_new(key, 1, key.size, WIDTH)], key.phase, block)


def _make_model(key: Key) -> Subject:
    model = create_model(key.subject, key.size)
    channels = model.default_cfg["input_size"][0]
    return Subject(_prepare(model, key), [_new(key, 1, channels, key.size, key.size)], key.phase, model)


def _prepare(module: nn.Module, key: Key) -> nn.Module:
    """The module on the key's device, in its dtype and mode."""
    return module.to(key.device, DTYPES[key.dtype]).train(key.phase == "training")


def create_model(name: str, img_size: int) -> Any:
    """A registered model made for square images; ``img_size`` is left out for those that take any size.

    "NAME+near_far" is a ViT of timm's, converted, "NAME+full" its baseline.
    """
    name, _, attention = name.partition("+")
    try:
        model = timm.create_model(name, img_size=img_size)
    except TypeError:
        model = timm.create_model(name)
    return convert(model, attention=attention) if attention else model


_MAKERS: dict[str, Callable[[Key], Subject]] = {
    "op": _make_op,
    "layer": _make_layer,
    "peers": _make_layer,
    "block": _make_block,
    "model": _make_model,
}


def most_square(tokens: int) -> tuple[int, int]:
    """The grid (rows, cols) of N tokens that is nearest to a square, rows <= cols."""
    rows = next(rows for rows in range(math.isqrt(tokens), 0, -1) if tokens % rows == 0)
    return rows, tokens // rows


def attend_flops(tokens: int, near: int, far: int, width: int) -> int:
    """Attention of N queries to so many neighbours and summaries each: the scores and the weighted sum."""
    return 4 * tokens * (near + far) * width


def route_flops(tokens: int, clusters: int, head_dim: int, passes: int) -> int:
    """Scores of N head means with M surrogates, as often as tokens join the nearest."""
    return 2 * passes * tokens * clusters * head_dim


def near_far_flops(
    rows: int, cols: int, width: int, num_heads: int, options: AttentionOptions, num_prefix_tokens: int = 0
) -> int:
    """Near and far on a grid of tokens, routing included, projections not.

    A token sees prefix tokens, its window of w² and M summaries. R anchors cost 2 R more, N keys for each of them and R
    keys for each of N, and the fit over them products of R x R. Left out are sums over clusters, additions, a few for
    each number, and the choice of anchors.

    Raises:
        ValueError: Not near and far over nearest clusters.
    """
    if options.neighborhood != "window" or options.assignment != "nearest":
        raise ValueError(f"expected windows and nearest clusters, got {options.neighborhood} and {options.assignment}")
    tokens, prefix = rows * cols, num_prefix_tokens
    size = options.window_size or window_size_for(rows, cols)
    clusters = math.prod(cluster_grid(rows, cols, options.num_clusters, options.cluster_factor))
    seen = attend_flops(tokens, prefix + size**2, clusters + 2 * options.anchors, width)
    to_all = attend_flops(prefix, prefix + tokens, 0, width)
    fit = 2 * options.anchors**2 * (9 * width + 7 * options.anchors * num_heads)  # nine with vectors, seven squarings
    return seen + to_all + fit + route_flops(tokens, clusters, width // num_heads, 1 + options.refinements)


def layer_flops(tokens: int, width: int, num_heads: int, options: AttentionOptions) -> int:
    """A layer on the most square grid: near and far, and the projections to q, k, v and back."""
    return 8 * tokens * width**2 + near_far_flops(*most_square(tokens), width, num_heads, options)


def operand_bytes(tokens: int, width: int, itemsize: int) -> int:
    """What every attention layer holds: its input, q, k, v and its output."""
    return 5 * tokens * width * itemsize
