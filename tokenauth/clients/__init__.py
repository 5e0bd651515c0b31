"""For callers: auth objects that send a token, for ``requests`` and for ``httpx``.

Nothing here imports Django or the rest of this package.
"""

from tokenauth.clients.source import TokenError

__all__ = ["TokenError"]
