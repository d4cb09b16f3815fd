"""Other papers' attention behind the interface of ours, to compare with: ``attention="smyrf"`` and so on.

A file is a peer, written from its paper's equations, and imports no other. Where to read: :mod:`.registry`, which there
are and what each takes; :mod:`.core`, what those with the projections of full attention share; :mod:`.layer`, timm's
signature around them. Shape letters are those of :mod:`castvision.ops`.
"""

from castvision.peers.registry import PEERS, check_peer_options, make_core, make_peer

__all__ = ["PEERS", "check_peer_options", "make_core", "make_peer"]
