"""For callers that use ``requests``."""

from __future__ import annotations

from typing import Any

from requests import PreparedRequest, Response, Session
from requests.auth import AuthBase

from tokenauth.clients.source import TokenSender, same_origin


class TokenAuth(TokenSender, AuthBase):
    """Sends a token with each request: ``requests.get(url, auth=TokenAuth(env="API_TOKEN"))``."""

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        """Add the headers to ``r``."""
        headers = self.headers_for(r.url or "")
        names = tuple(headers)

        def before_redirect(response: Response, *_args: Any, **_kwargs: Any) -> None:
            if not response.is_redirect:
                return
            # The next request is a copy of this one, without Authorization for most other origins.
            # We remove our headers for all. requests itself resolves the URL, because another
            # reading of odd URLs would be a way around this.
            following = Session().resolve_redirects(response, response.request, yield_requests=True)
            for request in following:
                if not same_origin(response.url, request.url or ""):
                    for name in names:
                        response.request.headers.pop(name, None)
                break

        r.headers.update(headers)
        r.register_hook("response", before_redirect)
        return r
