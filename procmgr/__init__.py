"""procmgr: a supervisor daemon for Python ASGI applications."""

__version__ = "0.1.0"
