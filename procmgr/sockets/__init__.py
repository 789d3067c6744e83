"""Listening sockets: the address grammar, binding, taking over inherited descriptors, and who may unlink what.

Rules:
- A listener is bound by procmgr or inherited (`Origin`). Only a Unix path that procmgr bound is ever unlinked, and only
  while the file there is still the one it made. Inherited listeners are neither unlinked nor shut down.
- Every listener has its real family, type and protocol. TCP listeners are made with IPPROTO_TCP, because asyncio sets
  TCP_NODELAY only on connections whose socket carries that number.
- Every listener is close-on-exec and non-blocking, as event loops need it. O_NONBLOCK is a flag of the open file
  description (fcntl(2)): whoever else holds an inherited listener sees accept(2) answer EAGAIN from then on.
"""

from procmgr.sockets.address import (
    TCP,
    Abstract,
    Address,
    Bindable,
    Inherited,
    SystemdName,
    Unix,
    parse_address,
    url,
)
from procmgr.sockets.adopt import adopt
from procmgr.sockets.bind import bind, somaxconn
from procmgr.sockets.listener import Listener, ListenerEstate, Origin, file_identity, unlink

__all__ = [
    "TCP",
    "Abstract",
    "Address",
    "Bindable",
    "Inherited",
    "Listener",
    "ListenerEstate",
    "Origin",
    "SystemdName",
    "Unix",
    "adopt",
    "bind",
    "file_identity",
    "parse_address",
    "somaxconn",
    "unlink",
    "url",
]
