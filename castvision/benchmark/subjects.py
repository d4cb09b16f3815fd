"""Builds what a key names, ready to be timed or weighed: width 384, 6 heads, batch 1, M = K = sqrt(N).

    op       cast_attention, or scaled_dot_product_attention, on queries, keys and values that are given
    layer    with both projections: CastAttention, or FullAttention on a fused kernel
    block    CastBlock, or the same with the attention's core replaced by the values ("no-core")
    model    a registered model on one image

Subjects of full attention: "sdpa" lets torch choose the kernel; "sdpa-flash", "sdpa-flash3", "sdpa-cudnn" and
"sdpa-efficient" name it (CUDA). "sdpa-head" is the core of one head, "sdpa-thin" a layer of one head on its share of
the width: they stand for sizes where all heads would take minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, activate_flash_attention_impl, restore_flash_attention_impl, sdpa_kernel

from castvision.benchmark.record import Key
from castvision.layers import CastAttention, CastBlock, FullAttention
from castvision.layers.cast_attention import default_num_clusters
from castvision.ops import cast_attention

WIDTH, HEADS = 384, 6
HEAD_DIM = WIDTH // HEADS
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BACKENDS = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-flash3": SDPBackend.FLASH_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
MIXINGS = {"cast": "joint", "cast-surrogate": "surrogate"}

Context = Callable[[], AbstractContextManager[Any]]


class Subject:
    """A call on inputs that are drawn anew before each run, into the same memory.

    Args:
        call: What to run on the inputs.
        inputs: Leaf tensors, filled from N(0, 1); with gradients for "training".
        phase: "forward" (without gradients) or "training" (forward, then backward from a fixed random gradient).
        module: Whose gradients are dropped before each run.
        blank: Share of the tokens (axis 1) of the first input that are all alike.
        context: Entered around each run, outside the clock.
    """

    def __init__(
        self,
        call: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        phase: str,
        module: nn.Module | None = None,
        blank: float = 0.0,
        context: Context = nullcontext,
    ) -> None:
        self.call, self.inputs, self.training = call, inputs, phase == "training"
        self.module, self.blank, self.context = module, blank, context
        self.grad: Tensor | None = None
        for leaf in inputs:
            leaf.requires_grad_(self.training)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Fresh inputs, no gradients, and the context; run inside."""
        self.refill()
        with self.context():
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
            qkv = layer.qkv(x).unflatten(2, (3, layer.num_heads, layer.head_dim)).permute(2, 0, 3, 1, 4)
            size = -(-x.shape[1] // layer.num_clusters)
            self.operands = (qkv[0], qkv[1], layer.surrogate_tokens.detach(), layer.phi(x), size)

    def run(self) -> None:
        """Route."""
        q, k, surrogates, phi, size = self.operands
        torch.ops.castvision.route(q, k, surrogates, phi, None, size, "sa_topk", "softmax", "affinity")


def make_subject(key: Key) -> Subject:
    """What ``key`` names; its quantity does not matter.

    Raises:
        ValueError: An unknown level or subject.
        RuntimeError: A fused kernel this torch or this device lacks (on running it, too).
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
    if key.subject not in MIXINGS:
        return Subject(_full, rows, key.phase, context=_context(key))
    clusters = default_num_clusters(key.size)

    def call(q: Tensor, k: Tensor, v: Tensor, surrogates: Tensor, phi: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return cast_attention(q, k, v, surrogates, phi, mixing=MIXINGS[key.subject])[0]

    return Subject(call, [*rows, _new(key, HEADS, clusters, HEAD_DIM), _new(key, 1, key.size, 1)], key.phase)


def _full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))


def _make_layer(key: Key) -> Subject:
    if key.subject == "sdpa-head":
        return _make_op(key)
    width, heads = (HEAD_DIM, 1) if key.subject == "sdpa-thin" else (WIDTH, HEADS)
    layer: nn.Module
    if key.subject in (*MIXINGS, "routing"):
        mixing = MIXINGS.get(key.subject, "joint")
        layer = CastAttention(width, heads, qkv_bias=True, num_clusters=default_num_clusters(key.size), mixing=mixing)
    elif key.subject == "no-core":
        layer = ValueAttention(width, heads, qkv_bias=True)
    else:
        layer = FullAttention(width, heads, qkv_bias=True)
    layer.to(key.device, DTYPES[key.dtype]).train(key.phase == "training")
    made = RoutingSubject if key.subject == "routing" else Subject
    inputs = [_new(key, 1, key.size, width)]
    return made(layer, inputs, key.phase, layer, blank_share(key.inputs), _context(key))


def _make_block(key: Key) -> Subject:
    if key.subject not in ("cast", "no-core"):
        raise ValueError(f"expected cast or no-core at level block, got {key.subject!r}")
    clusters = {"num_clusters": default_num_clusters(key.size)}
    block = CastBlock(WIDTH, HEADS, qkv_bias=True, attn_kwargs=clusters)
    if key.subject == "no-core":
        block.attn = ValueAttention(WIDTH, HEADS, qkv_bias=True)
    block.to(key.device, DTYPES[key.dtype]).train(key.phase == "training")
    return Subject(block, [_new(key, 1, key.size, WIDTH)], key.phase, block)


def _make_model(key: Key) -> Subject:
    model = create_model(key.subject, key.size).to(key.device, DTYPES[key.dtype])
    model.train(key.phase == "training")
    channels = model.default_cfg["input_size"][0]
    return Subject(model, [_new(key, 1, channels, key.size, key.size)], key.phase, model)


def create_model(name: str, img_size: int) -> Any:
    """A registered model made for square images; ``img_size`` is left out for those that take any size."""
    try:
        return timm.create_model(name, img_size=img_size)
    except TypeError:
        return timm.create_model(name)


def _context(key: Key) -> Context:
    """The kernel that the subject's name asks for, chosen around its runs."""
    backend = BACKENDS.get(key.subject)
    if backend is None:
        return nullcontext

    @contextmanager
    def chosen() -> Iterator[None]:
        with ExitStack() as stack:
            if key.subject == "sdpa-flash3":
                activate_flash_attention_impl("FA3")
                stack.callback(restore_flash_attention_impl)
            stack.enter_context(sdpa_kernel(backend))
            yield

    return chosen


_MAKERS: dict[str, Callable[[Key], Subject]] = {
    "op": _make_op,
    "layer": _make_layer,
    "block": _make_block,
    "model": _make_model,
}
