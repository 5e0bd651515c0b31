"""For callers: auth objects that send a token, for ``requests`` and for ``httpx``.

Each library has its own module. None of them imports Django or the rest of this package, so
that they work wherever a caller runs.
"""

from tokenauth.clients.source import TokenError

__all__ = ["TokenError"]
