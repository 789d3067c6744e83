"""What other programs call what procmgr has, differently or not at all: the facts that docs/migrating.md is made of."""

from __future__ import annotations

from procmgr.config.peers import circus, granian, gunicorn, hypercorn, supervisor, uvicorn
from procmgr.config.peers.model import Option, Peer, Trait

PEERS = (uvicorn.PEER, gunicorn.PEER, hypercorn.PEER, granian.PEER, supervisor.PEER, circus.PEER)

__all__ = ["PEERS", "Option", "Peer", "Trait"]
