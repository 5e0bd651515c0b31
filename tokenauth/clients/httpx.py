"""For callers that use ``httpx``, sync or async."""

from __future__ import annotations

from collections.abc import Generator

import httpx

from tokenauth.clients.source import TokenSender, same_origin

_ASKED = "tokenauth.asked"


class TokenAuth(TokenSender, httpx.Auth):
    """Sends a token with each request: ``httpx.Client(auth=TokenAuth(env="API_TOKEN"))``."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the headers to ``request``."""
        url = str(request.url)
        asked = request.extensions.get(_ASKED, url)
        # A redirect that the caller follows by hand comes here too, with the extensions of the
        # request before it, which tell whether it leads elsewhere.
        ours = same_origin(asked, url)
        request.extensions = {**request.extensions, _ASKED: asked if ours else ""}
        if ours:
            for name, value in self.headers_for(url).items():
                _put(request.headers, name.encode(), value.encode())
        yield request


def _put(headers: httpx.Headers, name: bytes, value: bytes) -> None:
    """Set a header that httpx keeps from other origins and out of reprs, like Authorization.

    httpx follows redirects without asking its auth objects, and copies all headers except the one
    that it looks up as Authorization, which is what ours is looked up as. There is no public way.
    If ``_list`` ever changes, this fails before anything is sent.
    """
    others = [entry for entry in headers._list if entry[0].lower() != name.lower()]
    headers._list[:] = [*others, (name, b"authorization", value)]
