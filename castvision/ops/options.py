"""Every choice and every operand of clustered attention, declared once for function, layer and implementations.

Tuples rather than data classes, since TorchScript reads named tuples and these travel through scripted layers.
"""

import difflib
from typing import Any, NamedTuple

from torch import Tensor

from castvision.ops.partitions import ASSIGNMENTS, BALANCED

ATTENTIONS = ("near_far", "paper")
NEIGHBORHOODS = ("window", "cluster")
MIXINGS = ("joint", "surrogate")
SURROGATES = ("sampled", "learned", "averaged")
SUMMARIES = ("mean", "query_weighted", "surrogate_weighted", "none")
ANCHOR_SELECTIONS = ("farthest", "grid")
ACTIVATIONS = ("softmax", "laplace")
ROUTING_SCORES = ("affinity", "linear")


class AttentionOptions(NamedTuple):
    """What kind of clustered attention; made and checked by :func:`make_options`.

    Attributes:
        attention: The preset the others come from: "near_far" or "paper" (CAST, arXiv 2402.04239).
        neighborhood: Whom a token attends to one by one: "window" of the grid, or "cluster", its own (a control).
        mixing: "joint": one softmax over neighbours and summaries; "surrogate": the paper's weights of whole clusters.
        surrogates: What clusters form around: "sampled" from the image, "learned" parameters, or "averaged" over
            images by moving k-means.
        assignment: Who joins which cluster: "nearest" (free sizes), "sa_topk" (a partition of equal sizes), "topk"
            (clusters may overlap), "random" or "blocks" of the grid (controls).
        refinements: Steps of k-means after sampled surrogates, at least 0.
        summaries: What stands for a cluster: "mean" of its keys and values; "query_weighted", the mean that is exact
            for the mean query; "surrogate_weighted" (the paper's); "none", neighbours only (a control).
        window_size: Side of a window in tokens; None follows the number of tokens.
        num_clusters: Number of clusters M; None follows the number of tokens N.
        cluster_factor: Where M follows N: M is about this times sqrt(N).
        cluster_size: Most tokens of a cluster, for assignments that balance; None: as few as hold all.
        anchors: Number of tokens whose rows are computed exactly; what others lack is fitted to what those lacked.
        anchor_selection: "farthest" (first, over queries) or "grid".
        shift_windows: Windows begin half a window further up and left.
        activation: "softmax", or "laplace" for the paper's mixing.
        laplace_norm: Divide Laplace weights by the number of keys.
        routing_score: Score of learned surrogates: the paper's "affinity", or "linear", cheaper.
    """

    attention: str = "near_far"
    neighborhood: str = "window"
    mixing: str = "joint"
    surrogates: str = "sampled"
    assignment: str = "nearest"
    refinements: int = 1
    summaries: str = "mean"
    window_size: int | None = None
    num_clusters: int | None = None
    cluster_factor: float = 2.0
    cluster_size: int | None = None
    anchors: int = 0
    anchor_selection: str = "farthest"
    shift_windows: bool = False
    activation: str = "softmax"
    laplace_norm: bool = False
    routing_score: str = "affinity"


class Operands(NamedTuple):
    """What attention works on; N patch tokens, prefix tokens apart.

    Attributes:
        q: Queries, (B, N, H, D).
        k: Keys, (B, N, H, D).
        v: Values, (B, N, H, D).
        prefix_k: Keys of the prefix tokens, seen by everybody, (B, P, H, D); None: no prefix.
        prefix_v: Their values.
        token_mask: True where a token is real, (B, N) bool; None: all are. Others hold zeros, and get zeros.
        scale: Factor of the logits.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    prefix_k: Tensor | None
    prefix_v: Tensor | None
    token_mask: Tensor | None
    scale: float


_CHOICES = {
    "attention": ATTENTIONS, "neighborhood": NEIGHBORHOODS, "mixing": MIXINGS, "surrogates": SURROGATES,
    "assignment": ASSIGNMENTS, "summaries": SUMMARIES, "anchor_selection": ANCHOR_SELECTIONS,
    "activation": ACTIVATIONS, "routing_score": ROUTING_SCORES,
}  # fmt: skip
_PAPER = {
    "neighborhood": "cluster", "mixing": "surrogate", "surrogates": "learned", "assignment": "topk",
    "summaries": "surrogate_weighted",
}  # fmt: skip
_LEAST = {"refinements": 0, "window_size": 1, "num_clusters": 1, "cluster_size": 1, "anchors": 0}


def make_options(attention: str = "near_far", **finer: Any) -> AttentionOptions:
    """A preset with some choices made otherwise.

    Args:
        attention: "near_far" (windows, and content clusters sampled from the image) or "paper" (CAST, Top-K).
        **finer: Fields of :class:`AttentionOptions`; None keeps the preset's.

    Returns:
        The complete, checked options.

    Raises:
        ValueError: An unknown choice, a number out of range, or choices that exclude each other.
        TypeError: An unknown field.
    """
    check_choice("attention", attention, ATTENTIONS)
    unknown = [name for name in finer if name not in AttentionOptions._fields]
    if unknown:
        near = difflib.get_close_matches(unknown[0], AttentionOptions._fields, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(AttentionOptions._fields)}"
        raise TypeError(f"unexpected argument {unknown[0]!r} of clustered attention{hint}")
    given = {name: value for name, value in finer.items() if value is not None}
    preset = _PAPER if attention == "paper" else {}
    options = AttentionOptions(**{"attention": attention, **preset, **given})
    for name, choices in _CHOICES.items():
        check_choice(name, getattr(options, name), choices)
    _check_numbers(options)
    _check_cluster_size(options)
    (_check_paper if options.mixing == "surrogate" else _check_joint)(options, given)
    return options


def check_factor(value: object) -> None:
    """Raise a ValueError unless ``value`` can be a ``cluster_factor``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError(f"expected cluster_factor > 0, a finite number, got cluster_factor={value!r}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a ValueError that lists the choices, and the nearest, unless ``value`` is one of them."""
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"expected {name} to be one of {', '.join(choices)}, got {value!r}{hint}")


def _check_numbers(options: AttentionOptions) -> None:
    for name, least in _LEAST.items():
        value = getattr(options, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ValueError(f"expected {name} to be a whole number >= {least}, got {name}={value!r}")
    for name in ("shift_windows", "laplace_norm"):
        if not isinstance(getattr(options, name), bool):
            raise ValueError(f"expected {name} to be True or False, got {name}={getattr(options, name)!r}")
    check_factor(options.cluster_factor)


def _check_cluster_size(options: AttentionOptions) -> None:
    why = {"nearest": "are free in size", "blocks": "are rectangles of the grid"}.get(options.assignment)
    if why is not None and options.cluster_size is not None:
        raise ValueError(
            f"expected no cluster_size with assignment={options.assignment!r}, whose clusters {why}, got "
            f"cluster_size={options.cluster_size}; give num_clusters"
        )


def _check_paper(options: AttentionOptions, given: dict[str, Any]) -> None:
    """Mixing by surrogates weighs whole clusters: it needs clusters to attend in, and surrogates with parameters."""
    whose = "mixing='surrogate' (the paper's)"
    _need(whose, options, "neighborhood", ("cluster",))
    _need(whose, options, "surrogates", ("learned",))
    _need(whose, options, "assignment", ("topk", *BALANCED))
    _need(whose, options, "summaries", ("surrogate_weighted", "none"))
    for name in ("anchors", "window_size", "shift_windows"):
        if given.get(name):
            raise ValueError(f"expected no {name} with {whose}, got {name}={given[name]!r}; leave it out")


def _check_joint(options: AttentionOptions, given: dict[str, Any]) -> None:
    whose = "mixing='joint' (one softmax)"
    _need(whose, options, "summaries", ("mean", "query_weighted", "none"))
    _need(whose, options, "assignment", ("nearest", *BALANCED))
    _need(whose, options, "activation", ("softmax",))
    if options.neighborhood == "cluster":
        _need("neighborhood='cluster'", options, "assignment", BALANCED)
        for name in ("window_size", "shift_windows"):
            if given.get(name):
                raise ValueError(f"expected no {name} with neighborhood='cluster', got {name}={given[name]!r}")
    if options.surrogates == "averaged":
        _need("surrogates='averaged'", options, "assignment", ("nearest", "sa_topk"))


def _need(whose: str, options: AttentionOptions, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(options, name)
    if value not in choices:
        raise ValueError(f"expected {name} to be {' or '.join(map(repr, choices))} with {whose}, got {name}={value!r}")
