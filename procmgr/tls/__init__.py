"""TLS: contexts made of certificates and keys, before the fork, so that all workers share the keys of sessions.

`material` reads files into sealed memory, `contexts` makes contexts of it, `x509` reads what a certificate says.
"""

from procmgr.tls.contexts import Contexts, Options, ServerContext
from procmgr.tls.material import Material, MaterialEstate, Pair, Signature, signature
from procmgr.tls.x509 import Certificate

__all__ = [
    "Certificate",
    "Contexts",
    "Material",
    "MaterialEstate",
    "Options",
    "Pair",
    "ServerContext",
    "Signature",
    "signature",
]
