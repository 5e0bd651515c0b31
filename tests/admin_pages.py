"""What tests of the admin share."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from tokenauth.models import AuditEvent, Token

LIST = "/admin/tokenauth/token/"
ADD = "/admin/tokenauth/token/add/"
AUDIT = "/admin/tokenauth/auditevent/"
WHOAMI = "/api/v1/whoami/"
EXAMPLE = "/auth/tokens/current/"
"""The view that the examples on the page of a new token call."""
PLAINTEXT = re.compile(r"tka_[0-9a-z]{12}_[0-9A-Za-z]{38}")

MakeUser = Callable[..., Any]


def grant(user: Any, codename: str) -> None:
    user.user_permissions.add(Permission.objects.get(codename=codename))


def browse(*codenames: str, name: str = "") -> Client:
    """Return a browser of a new member of staff who has these permissions: ``browse("view_token")``."""
    users: Any = get_user_model()
    user = users.objects.create_user(name or "-".join(["staff", *codenames]), is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    browser = Client()
    browser.force_login(user)
    return browser


def page(token: Token, name: str = "change") -> str:
    return reverse(f"admin:tokenauth_token_{name}", args=[token.pk])


def fill_in(browser: Client, url: str = ADD, **fields: Any) -> dict[str, Any]:
    """Return what a browser would send after these fields were filled in."""
    form = browser.get(url).context["adminform"].form
    data: dict[str, Any] = {}
    for name in form.fields:
        value = form.get_initial_for_field(form.fields[name], name)
        if name in {"not_before", "expires_at"}:
            local = timezone.localtime(value) if value else None
            data[f"{name}_0"] = f"{local:%Y-%m-%d}" if local else ""
            data[f"{name}_1"] = f"{local:%H:%M:%S}" if local else ""
        elif isinstance(value, list):
            data[name] = "\n".join(value) if name == "allowed_networks" else value
        else:
            data[name] = "" if value is None else value
    return {**data, **fields}


def rows(event: str) -> Any:
    return AuditEvent.objects.filter(event=event)


def run(browser: Client, token: Token, name: str, *, bulk: bool, **fields: Any) -> Any:
    data = {"confirmed": "yes", **fields}
    if bulk:
        selected = {"action": f"{name}_selected", "_selected_action": [token.pk]}
        return browser.post(LIST, {**data, **selected})
    return browser.post(page(token, name), data)


def text_of(response: Any) -> str:
    """Return what a page says, without its tags."""
    assert response.status_code == 200
    return text_of_html(response.content.decode())


def text_of_html(html: str) -> str:
    """Return the text of a page, in one line."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", html)))
