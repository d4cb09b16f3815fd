"""Which peers there are, by the word of ``attention=``, what each may be told, and whether pretrained ViTs take it."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

from castvision.ops.options import check_factor
from castvision.peers.clustr import Clustr
from castvision.peers.core import Core
from castvision.peers.flare import FlareAttention
from castvision.peers.joint_tokens import JointTokens
from castvision.peers.layer import PeerAttention, PeerLayer
from castvision.peers.neighborhood import Neighborhood
from castvision.peers.nystrom import Nystrom
from castvision.peers.secvit import SecVit
from castvision.peers.separable import SeparableAttention
from castvision.peers.smyrf import Smyrf
from castvision.peers.veca import Veca
from castvision.peers.xcit import Xcit

if TYPE_CHECKING:
    from collections.abc import Mapping


class Peer(NamedTuple):
    """A peer.

    Attributes:
        kind: Its core, or its layer where it has projections of its own.
        reg_tokens: Registers of a model that is not told how many; those of peers whose patches need them.
    """

    kind: type[Core] | type[PeerLayer]
    reg_tokens: int = 0

    @property
    def options(self) -> tuple[str, ...]:
        """Names of what it may be told."""
        parameters = inspect.signature(self.kind.__init__).parameters.values()
        return tuple(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)

    @property
    def no_conversion(self) -> str:
        """Why pretrained weights cannot be given this attention; empty: they can."""
        if issubclass(self.kind, Core):
            return self.kind.no_conversion
        return "it has projections of its own, which no pretrained model has"


PEERS: dict[str, Peer] = {
    "smyrf": Peer(Smyrf),
    "clustr": Peer(Clustr),
    "secvit": Peer(SecVit),
    "nystrom": Peer(Nystrom),
    "neighborhood": Peer(Neighborhood),
    "flare": Peer(FlareAttention),
    "veca": Peer(Veca, reg_tokens=64),
    "joint_tokens": Peer(JointTokens, reg_tokens=16),
    "separable": Peer(SeparableAttention),
    "xcit": Peer(Xcit),
}
"""By the word of ``attention=``."""

OPTIONS = tuple(dict.fromkeys(name for peer in PEERS.values() for name in peer.options))
"""Names of all peers' options."""

_LEAST = {
    "rounds": 1, "chunk_size": 1, "num_clusters": 1, "scales": 1, "num_neighbors": 1, "num_landmarks": 1,
    "iterations": 1, "kernel_size": 1, "num_latents": 1, "window_size": 1,
}  # fmt: skip


def check_peer_options(attention: str, options: Mapping[str, Any]) -> None:
    """Raise unless a peer takes these options, with such values; None stands for the default of all.

    Raises:
        ValueError: An option of something else, or a value out of range.
    """
    known = PEERS[attention].options
    for name, value in options.items():
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; {takes}"
            raise ValueError(f"expected no {name} with attention={attention!r}, got {name}={value!r}{hint}")
        least = _LEAST.get(name)
        if value is None:
            continue
        if least is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ValueError(f"expected {name} to be a whole number >= {least}, got {name}={value!r}")
        if name == "cluster_factor":
            check_factor(value)
        if name == "proportional" and not isinstance(value, bool):
            raise ValueError(f"expected proportional to be True or False, got proportional={value!r}")


def make_core(attention: str, num_heads: int, head_dim: int, seed: int, options: Mapping[str, Any]) -> Core:
    """The core of a peer without parameters, for layers that have projections.

    Raises:
        ValueError: A peer that pretrained weights cannot be given, or options that do not fit.
    """
    peer = PEERS[attention]
    if peer.no_conversion:
        raise ValueError(
            f"expected an attention without weights of its own, got {attention!r}: {peer.no_conversion}; use a "
            f"cast_vit_* with attention={attention!r}"
        )
    check_peer_options(attention, options)
    core: Any = peer.kind
    made: Core = core(num_heads, head_dim, seed, **_given(options))
    return made


def make_peer(attention: str, dim: int, num_heads: int, options: Mapping[str, Any], **arguments: Any) -> PeerLayer:
    """The layer of a peer.

    Args:
        attention: Of :data:`PEERS`.
        dim: C.
        num_heads: H.
        options: The peer's own.
        **arguments: Of :class:`PeerLayer`, and ``seed``.

    Raises:
        ValueError: An option that does not fit.
    """
    check_peer_options(attention, options)
    kind: Any = PEERS[attention].kind
    seed, chosen = arguments.pop("seed", 0), _given(options)
    layer: PeerLayer
    if issubclass(kind, Core):
        if kind.has_parameters:
            chosen |= {name: arguments.get(name) for name in ("device", "dtype")}
        layer = PeerAttention(dim, num_heads, core=kind, seed=seed, core_arguments=chosen, **arguments)
    else:
        layer = kind(dim, num_heads, **chosen, **arguments)
    return layer


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
