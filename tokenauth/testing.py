"""Helpers for the tests of projects that use this app. Nothing of the app itself imports them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Unpack

from django.test import SimpleTestCase
from django.test.utils import override_settings
from rest_framework.test import APIClient

from tokenauth import services
from tokenauth.conf import get_settings
from tokenauth.principal import DATABASE, ClientUser, Principal
from tokenauth.scopes import ScopeSet
from tokenauth.services import Changes, Issued
from tokenauth.tokens import Plaintext, generate_public_id

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

__all__ = ["TokenClient", "issue_token", "make_principal", "without_limits"]

CLIENT_ID = "test"
"""The client of a token that has neither a client nor a user."""


def make_principal(
    *,
    scopes: Iterable[str] = (),
    user: AbstractBaseUser | None = None,
    client_id: str = "",
) -> Principal:
    """Return what a view finds in ``request.auth``, for unit tests. No token is stored.

    Without ``client_id``, the client is the user's name. Without ``user``, the principal's user is a
    ClientUser. Raises TypeError for a lone string of scopes.
    """
    if isinstance(scopes, str):
        raise TypeError(f"Write a list of scopes: [{scopes!r}].")
    client_id = client_id or (CLIENT_ID if user is None else user.get_username())
    return Principal(
        client_id=client_id,
        scopes=ScopeSet(scopes),
        token_id=generate_public_id(),
        name="",
        expires_at=None,
        source=DATABASE,
        user=ClientUser(client_id) if user is None else user,
    )


def issue_token(
    *, user: AbstractBaseUser | None = None, client_id: str = "", **changes: Unpack[Changes]
) -> Issued:
    """Issue a token in the test database: ``issue_token(scopes=["samples:read"])``.

    Takes what ``services.issue`` takes, and raises what it raises. Without ``client_id``, the client
    is the user's name.
    """
    if user is None:
        client_id = client_id or CLIENT_ID
    return services.issue(client_id=client_id, user=user, **changes)


class TokenClient(APIClient):
    """DRF's test client, which can send a token. It calls views of every kind."""

    _credentials: dict[str, Any]

    def use_token(
        self,
        *,
        user: AbstractBaseUser | None = None,
        client_id: str = "",
        **changes: Unpack[Changes],
    ) -> Issued:
        """Issue a token as ``issue_token`` does, send it with every further request, and return it.

        It is sent in the first header of ``TRANSPORTS``. ``logout`` and ``credentials`` remove it.
        """
        issued = issue_token(user=user, client_id=client_id, **changes)
        transport = get_settings().transports[0]
        text = Plaintext(f"{transport.scheme} {issued.plaintext}".lstrip())
        self.credentials(**{**self._credentials, transport.meta_key: text})
        return issued


class _WithoutLimits(override_settings):
    def decorate_class(self, cls: type) -> type:
        """Decorate Django's test cases as a whole, and the tests of another class one by one."""
        if issubclass(cls, SimpleTestCase):
            return super().decorate_class(cls)
        for name, test in inspect.getmembers_static(cls):
            if not name.startswith("test"):
                continue
            if inspect.isfunction(test):
                setattr(cls, name, self.decorate_callable(test))
            elif isinstance(test, staticmethod | classmethod):
                setattr(cls, name, type(test)(self.decorate_callable(test.__func__)))
        return cls


def without_limits() -> override_settings:
    """Return an object that switches limits off, so that tests don't throttle each other.

    Use it as a context manager, or to decorate a test or a class of tests. Affects ``FAILURE_RATE``,
    the rates of tokens, ``TokenRateThrottle``, and everything else that django-ratelimit counts.
    """
    return _WithoutLimits(RATELIMIT_ENABLE=False)
