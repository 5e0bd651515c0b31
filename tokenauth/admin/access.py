"""Which tokens staff see in the admin, and which they may change. ``policy`` decides."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.templatetags.admin_urls import add_preserved_filters
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse

from tokenauth import policy
from tokenauth.client_info import Actor
from tokenauth.models import Token


class TokenAccess(admin.ModelAdmin):  # type: ignore[type-arg]
    """Shows all tokens to staff who may view or change them, and their own to staff who may add."""

    def get_queryset(self, request: HttpRequest) -> Any:
        """Read from the database that tokens are written to, because a replica may be behind."""
        tokens = Token.objects.primary().select_related("user", "replaced_by", "parent")
        if super().has_view_permission(request):
            return tokens
        # The id of another owner's token gets the same answer as an unknown id.
        return tokens.filter(user=request.user.pk)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_view_permission(request, obj) or self._may_manage_own(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False for a revoked token, whose page is read-only."""
        is_final = obj is not None and obj.revoked_at is not None
        return not is_final and self.has_operate_permission(request, obj)

    def has_operate_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return whether the user may disable, enable and revoke ``obj``, or any token if it is None."""
        return super().has_change_permission(request, obj) or self._may_manage_own(request, obj)

    def has_rotate_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return whether the user may change ``obj`` and add a token, as rotating does."""
        return self.has_operate_permission(request, obj) and self.has_add_permission(request)

    def find_changeable(self, request: HttpRequest, object_id: str, permission: str) -> Any:
        """Return the token with this key; None if the user sees none.

        Raises PermissionDenied without ``permission``, which is "operate" or "rotate".
        """
        is_permitted = getattr(self, f"has_{permission}_permission")
        # Before the token is looked up, so that the answer doesn't reveal whether it exists.
        if not is_permitted(request):
            raise PermissionDenied
        token = self.get_object(request, object_id)
        if token is not None and not is_permitted(request, token):
            raise PermissionDenied
        return token

    def keep_filters(self, request: HttpRequest, url: str) -> str:
        """Return ``url`` with the filters of the list that the user came from."""
        kept: Any = {"preserved_filters": self.get_preserved_filters(request), "opts": self.opts}
        return add_preserved_filters(kept, url)

    def redirect_to_index(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Answer as Django does if there is no such token."""
        return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined,no-any-return]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Tokens are revoked, not deleted, except along with their user."""
        page = request.resolver_match.url_name if request.resolver_match else None
        if (page or "").startswith("tokenauth_token_"):
            return False
        return super().has_delete_permission(request, obj)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: Any = None
    ) -> HttpResponse:
        # Django looks the token up first, and so would reveal whether it exists.
        if not self.has_view_permission(request):
            raise PermissionDenied
        return super().history_view(request, object_id, extra_context)

    def _may_manage_own(self, request: HttpRequest, token: Token | None) -> bool:
        if not self.has_add_permission(request):
            return False
        return token is None or policy.may_change(Actor.from_request(request), token)
