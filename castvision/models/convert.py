"""Clustered attention put into a pretrained model of timm, and taken out again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import timm
import torch
from timm.layers import Format, HybridEmbed, PatchEmbed
from timm.models import Eva, VisionTransformer
from timm.models.eva import EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ParallelThingsBlock, ResPostBlock
from torch import nn

from castvision.layers import CastAttention
from castvision.layers.converted_attention import CONVERTED as ATTENTIONS
from castvision.models.cast_vit import CastVisionTransformer, options_per_block
from castvision.models.converted import CONVERTED as MODELS
from castvision.models.timm_private import FeatureGetterNet
from castvision.ops import AttentionOptions, check_choice, make_options
from castvision.peers import PEERS, make_core
from castvision.peers.layer import PeerLayer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castvision.peers.core import Core

Model = TypeVar("Model", bound=nn.Module)

CHOICES = ("near_far", "full", *(name for name, peer in PEERS.items() if not peer.no_conversion))
"""What ``attention`` may be."""

_BLOCKS = (Block, ResPostBlock, ParallelThingsBlock, EvaBlock, EvaBlockPostNorm)
PRESET: dict[str, Any] = {"summaries": "query_weighted", "cluster_factor": 2.0, "anchors": 144}
"""Options for weights trained with full attention, where none are given."""

OPTIONS = (*AttentionOptions._fields, "blocks", "rope_in_routing")
"""Names of all arguments of :func:`convert` but the model."""


def option_names(attention: Any) -> tuple[str, ...]:
    """Names of the arguments of :func:`convert` but the model, with this attention."""
    if isinstance(attention, str) and attention in PEERS:
        return ("attention", "blocks", *PEERS[attention].options)
    return OPTIONS


def preset(attention: Any) -> dict[str, Any]:
    """Options for weights trained with full attention, where none are given: those of ours, none for a peer."""
    return {} if isinstance(attention, str) and attention in PEERS else PRESET


_USE = "use a VisionTransformer or Eva of timm (AugReg, DeiT, DINOv2, DINOv3, MAE, SigLIP, EVA-02, …), or a cast_vit_*"
_STATE = "castvision_original"  # of a converted model: what timm's own had


def convert(
    model: Model,
    *,
    attention: str = "near_far",
    window_size: int | None = None,
    num_clusters: int | None = None,
    anchors: int | None = None,
    blocks: Sequence[int] | None = None,
    rope_in_routing: bool = False,
    **finer: Any,
) -> Model:
    """Put clustered attention into a ViT of timm, in place, and let it take images of any size.

    The model stays the same object with the same modules, parameters, state-dict keys, hooks and configuration; class
    and register tokens still attend to all tokens exactly. Position embeddings are resampled to each image and rotary
    codes computed for it, as timm does with ``dynamic_img_size=True``. Images whose sides are no multiples of the patch
    are padded if the model was created with ``dynamic_img_pad=True``, and refused otherwise. Masks are refused.

    Convert before ``torch.compile``, ``torch.export`` or wrapping for several processes; TorchScript cannot read a
    converted model. A saved state dict fits the
    original model as well; a saved folder (``timm.models.save_for_hf``) is the original's and converted again after
    loading.

    Args:
        model: timm's ``VisionTransformer``, ``VisionTransformerDistilled`` or ``Eva``; or what holds one: the result of
            ``create_model(features_only=True)`` or transformers' ``TimmWrapperModel``.
        attention: "near_far", or "full" for full attention at any image size, the baseline; or a peer that has no
            weights of its own: "smyrf", "clustr", "secvit", "nystrom", "neighborhood".
        window_size: Side of a window in tokens; None: an even number of about N ** (1/4), for each image of N tokens.
        num_clusters: Number of clusters; None: about 2 sqrt(N), for each image.
        anchors: Tokens whose rows are exact; None: 144, fewer where an image has fewer tokens.
        blocks: Numbers of the blocks to convert, negative ones from the end, e.g. ``range(4, 12)``; the others keep
            full attention. None: all.
        rope_in_routing: Form clusters on keys after rotary positions: of places more than of content.
        **finer: Other fields of :class:`castvision.ops.AttentionOptions`; ``shift_windows=True`` shifts the windows of
            every other block. Default here: ``summaries="query_weighted"``. Of a peer: its own options.

    Returns:
        ``model``.

    Raises:
        TypeError: Not a model that can be converted, or an unknown option; the model is unchanged.
        ValueError: A value that does not fit, or a model that is converted already; likewise.
    """
    inner: Any = _timm_model(model)
    _check_model(inner)
    attentions = [_attentions(block) for block in inner.blocks]
    chosen = _chosen(attention, blocks, len(inner.blocks))
    given = {"window_size": window_size, "num_clusters": num_clusters, "anchors": anchors, **finer}
    given = {name: value for name, value in given.items() if value is not None}
    if attention == "full" and given:
        raise ValueError(f"expected no options of clusters with attention='full', got {given}; leave them out")
    options = options_per_block({**preset(attention), **given}, len(inner.blocks))
    kinds = [
        _kinds(attention, each, modules, i, rope_in_routing)
        for i, (each, modules) in enumerate(zip(options, attentions, strict=True))
    ]
    embed = inner.patch_embed
    rope: Any = getattr(inner, "rope", None)
    cached = getattr(rope, "_use_cached_embed", None)
    state = {
        "dynamic_img_size": inner.dynamic_img_size,
        "cached_rope": cached,
        "patch_embed": {name: getattr(embed, name) for name in ("strict_img_size", "flatten", "output_fmt")},
    }
    setattr(inner, _STATE, state)
    for i, modules in enumerate(attentions):
        for attn in modules:
            attn.__class__ = ATTENTIONS[type(attn)]
            attn.options, attn.core = kinds[i] if i in chosen else (None, None)
            attn.seed, attn.rope_in_routing = i, rope_in_routing
    inner.dynamic_img_size = True
    embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
    if cached is not None:
        rope._use_cached_embed = False
    if type(rope) in MODELS:
        rope.__class__ = MODELS[type(rope)]
    inner.__class__ = MODELS[type(inner)]
    return model


def check_name(name: str, **options: Any) -> None:
    """Refuse the name of a model that cannot be converted, before anyone fetches or reads its weights.

    Args:
        name: A registered one of timm's.
        **options: See :func:`convert`.

    Raises:
        TypeError: See :func:`convert`; ValueError likewise.
    """
    with torch.device("meta"):
        convert(timm.create_model(name, num_classes=0), **options)


def revert(model: Model) -> Model:
    """Undo :func:`convert` in place: timm's own attention and fixed image size again, with the weights of now.

    Args:
        model: What ``convert`` was given.

    Returns:
        ``model``.

    Raises:
        ValueError: It is not converted.
    """
    inner: Any = _timm_model(model)
    if type(inner) not in MODELS.values():
        raise ValueError(f"expected a model that castvision.convert changed, got {type(inner).__name__}")
    state = inner.__dict__.pop(_STATE)
    inner.__class__ = _original(MODELS, inner)
    for module in inner.blocks.modules():
        if type(module) in ATTENTIONS.values():
            module.__class__ = _original(ATTENTIONS, module)
            for name in ("options", "core", "seed", "rope_in_routing"):
                delattr(module, name)
    inner.dynamic_img_size = state["dynamic_img_size"]
    for name, value in state["patch_embed"].items():
        setattr(inner.patch_embed, name, value)
    rope: Any = getattr(inner, "rope", None)
    if state["cached_rope"] is not None:
        rope._use_cached_embed = state["cached_rope"]
    if type(rope) in MODELS.values():
        rope.__class__ = _original(MODELS, rope)
    return model


def change_attention(model: Model, attention: str) -> Model:
    """Bring a ViT of timm's, converted or not, to an attention, in place.

    Args:
        model: As for :func:`convert`. One that is converted to ``attention`` already keeps its options.
        attention: "near_far" or a peer, with the defaults of :func:`convert`, or "full".

    Returns:
        ``model``.

    Raises:
        TypeError: Not a model that can be converted.
        ValueError: Another attention, or a model of ours, which has its own.
    """
    check_choice("attention", attention, CHOICES)
    inner: Any = _timm_model(model)
    if type(inner) in MODELS.values():
        layers = [module for module in inner.modules() if type(module) in ATTENTIONS.values()]
        if next((_name(layer) for layer in layers if _name(layer) != "full"), "full") == attention:
            return model
        revert(model)
    return convert(model, attention=attention)


def split_options(model_name: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Arguments for ``timm.create_model`` apart from those for :func:`convert`.

    Args:
        model_name: Models of ours (``cast_…``) take all arguments themselves.
        arguments: ``attention`` among them asks for conversion.

    Returns:
        (those for timm, those for ``convert`` or None without conversion).

    Raises:
        ValueError: Options of clustered attention without ``attention``.
    """
    if model_name.startswith("cast_"):
        return dict(arguments), None
    names = option_names(arguments.get("attention"))
    options = {name: value for name, value in arguments.items() if name in names}
    if options and "attention" not in options:
        raise ValueError(
            f"expected attention='near_far' beside {', '.join(options)} for {model_name}, which has full attention; "
            "add it, or leave them out"
        )
    rest = {name: value for name, value in arguments.items() if name not in names}
    return rest, options or None


def is_converted(model: nn.Module) -> bool:
    """Whether :func:`convert` changed the model, or the one it holds."""
    return type(_timm_model(model)) in MODELS.values()


def has_attention_of_ours(model: nn.Module) -> bool:
    """Whether a model was converted or built with attention of this package, be it full attention or none."""
    inner = _timm_model(model)
    layers = (CastAttention, PeerLayer)
    is_built = isinstance(inner, CastVisionTransformer) or any(isinstance(each, layers) for each in inner.modules())
    return is_built or type(inner) in MODELS.values()


def _kinds(
    attention: str, options: dict[str, Any], modules: list[Any], seed: int, rope_in_routing: bool
) -> tuple[AttentionOptions | None, Core | None]:
    """The options of ours, or the core of a peer, for the attention modules of a block."""
    if attention in PEERS:
        if rope_in_routing:
            raise ValueError(f"expected no rope_in_routing with attention={attention!r}; leave it out")
        return None, make_core(attention, modules[0].num_heads, modules[0].head_dim, seed, options)
    made = make_options(**options)
    if made.surrogates != "sampled":
        raise ValueError(
            f"expected surrogates='sampled', got {made.surrogates!r}, which has weights that a converted model "
            "cannot have; use a cast_vit_* model"
        )
    return made, None


def _name(layer: Any) -> str:
    """The word for what a converted layer does."""
    if layer.core is not None:
        return next(name for name, peer in PEERS.items() if peer.kind is type(layer.core))
    return "full" if layer.options is None else "near_far"


def _original(table: dict[type, type], module: nn.Module) -> type:
    return next(before for before, after in table.items() if after is type(module))


def _timm_model(model: nn.Module) -> nn.Module:
    """The model that timm's or transformers' wrapper holds, or the model itself."""
    inner = model.model if isinstance(model, FeatureGetterNet) else model
    held = getattr(inner, "timm_model", None)
    return held if isinstance(held, nn.Module) else inner


def _check_model(model: Any) -> None:
    kind = type(model).__name__
    if has_attention_of_ours(model):
        raise ValueError(
            f"expected a ViT of timm's, got a {kind} with attention of castvision's already; call "
            "castvision.revert(model) first, or give a cast_vit_* its options when it is created"
        )
    if type(model) not in MODELS:
        names = [name for name, _ in (*model.named_modules(), *model.named_parameters())]
        if any(word in name for name in names for word in ("rel_pos", "relative_position")):
            why = (
                "adds a bias to every pair of tokens by their relative position, which a cluster's summary cannot carry"
            )
        elif isinstance(model, (VisionTransformer, Eva)):
            why = "is a class of its own on top of timm's, whose forward may differ"
        else:
            why = "is none of the families that can be converted"
        raise TypeError(f"cannot convert a {kind}: it {why}; {_USE}")
    if type(model.patch_embed) not in (PatchEmbed, HybridEmbed):
        raise TypeError(f"cannot convert a {kind} with {type(model.patch_embed).__name__} as patch_embed; {_USE}")
    if getattr(model.patch_drop, "prob", 0):
        raise ValueError(
            "expected patch_drop_rate=0, since dropped tokens tear the grid that windows lie on; create the model "
            "without patch_drop_rate"
        )


def _attentions(block: nn.Module) -> list[Any]:
    """A block's attention modules, of which timm knows several kinds."""
    found = [module for module in block.modules() if type(module) in ATTENTIONS]
    if type(block) in _BLOCKS and found:
        return found
    inside = getattr(block, "attn", None)
    what = type(block).__name__ if inside is None else f"{type(block).__name__} with {type(inside).__name__}"
    why = "takes differences of two softmaxes" if "Diff" in what else "is no attention module that can be replaced"
    raise TypeError(f"cannot convert blocks of the kind {what}: their attention {why}; {_USE}")


def _chosen(attention: str, blocks: Sequence[int] | None, depth: int) -> set[int]:
    """Numbers of the blocks to convert, from 0."""
    if attention == "paper":
        raise ValueError(
            "expected attention='near_far' or 'full', got 'paper', which has weights of its own that no pretrained "
            "model has; use a cast_vit_* with attention='paper'"
        )
    if attention in PEERS and PEERS[attention].no_conversion:
        raise ValueError(
            f"expected attention to be one of {', '.join(CHOICES)}, got {attention!r}: "
            f"{PEERS[attention].no_conversion}; use a cast_vit_* with attention={attention!r}"
        )
    check_choice("attention", attention, CHOICES)
    if attention == "full":
        if blocks is not None:
            raise ValueError(f"expected no blocks with attention='full', got {blocks=}; leave it out")
        return set()
    chosen = range(depth) if blocks is None else blocks
    numbers = list(chosen) if isinstance(chosen, Iterable) else []
    wrong = [i for i in numbers if isinstance(i, bool) or not isinstance(i, int) or not -depth <= i < depth]
    if wrong or not numbers:
        raise ValueError(
            f"expected blocks as numbers from {-depth} to {depth - 1}, at least one, got {blocks}; attention='full' "
            "keeps all as they are"
        )
    return {i % depth for i in numbers}
