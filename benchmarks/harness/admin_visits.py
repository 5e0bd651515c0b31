"""Visits to every page of the admin: what each takes, and which big tables its queries read whole."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator
from datetime import timedelta
from html import unescape
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client
from django.test.utils import (
    CaptureQueriesContext,
    setup_test_environment,
    teardown_test_environment,
)
from django.urls import reverse
from tqdm import tqdm

from harness.plans import find_scans
from tokenauth.admin import OPERATIONS
from tokenauth.models import AuditEvent, Token

NAME = "bench"
"""The user who visits. An earlier visit of the same database may have made it."""
VISITS = 3
MOST_CHOICES = 12
"""How many choices of each filter are tried."""

TOKENS = reverse("admin:tokenauth_token_changelist")
EVENTS = reverse("admin:tokenauth_auditevent_changelist")


def measure() -> dict[str, Any]:
    """Return the seconds of each page, by its name, and the tables that its queries read whole."""
    users: Any = get_user_model().objects
    user = users.filter(username=NAME).first() or users.create_superuser(NAME, password=None)
    browser = Client(SERVER_NAME="localhost")
    browser.force_login(user)
    setup_test_environment()
    pages = dict(_pages(browser))
    teardown_test_environment()
    return {name: _visit(browser, visit) for name, visit in tqdm(pages.items(), unit=" pages")}


def _visit(browser: Client, visit: tuple[str, dict[str, str] | None]) -> dict[str, Any]:
    times = []
    for _ in range(VISITS):
        began = time.perf_counter()
        _open(browser, visit)
        times.append(time.perf_counter() - began)
    with CaptureQueriesContext(connection) as queries:
        _open(browser, visit)
    scans = {table for query in queries for table in find_scans(query["sql"])}
    return {"seconds": statistics.median(times), "scans": sorted(scans)}


def _open(browser: Client, visit: tuple[str, dict[str, str] | None]) -> Any:
    url, data = visit
    response = (
        browser.get(url, follow=True) if data is None else browser.post(url, data, follow=True)
    )
    if response.status_code != HTTPStatus.OK:
        raise SystemExit(f"{url}: {response.status_code}")
    if response.streaming:
        for _part in response:
            pass
    return response


def _pages(browser: Client) -> Iterator[tuple[str, tuple[str, dict[str, str] | None]]]:
    """Give the name and the address of each page, with the data if it is posted."""
    yield "index of the app", ("/admin/tokenauth/", None)
    for name, url in (("tokens", TOKENS), ("events", EVENTS)):
        yield from _list_pages(browser, name, url)
    tokens = Token.objects.order_by("pk")
    busy, idle = tokens[1], tokens[len(OPERATIONS) + 1_000]
    event = AuditEvent.objects.order_by("pk")[1_000]
    overview = reverse("admin:tokenauth_overview")
    pages = {
        "add token": reverse("admin:tokenauth_token_add"),
        "token, busy": reverse("admin:tokenauth_token_change", args=[busy.pk]),
        "token, idle": reverse("admin:tokenauth_token_change", args=[idle.pk]),
        "token with descendants": reverse("admin:tokenauth_token_change", args=[tokens[0].pk]),
        "event": reverse("admin:tokenauth_auditevent_change", args=[event.pk]),
        "overview": overview,
    }
    for name in OPERATIONS:
        pages[f"token, {name}"] = reverse(f"admin:tokenauth_token_{name}", args=[busy.pk])
    for name, url in pages.items():
        response = _open(browser, (url, None))
        yield name, (url, None)
        for chart in re.findall(r'<img src="([^"]+[.]svg)"', response.content.decode()):
            kind = chart.rpartition("/")[2].removesuffix(".svg")
            yield f"{name}: chart {kind}", (chart, None)


def _list_pages(
    browser: Client, name: str, url: str
) -> Iterator[tuple[str, tuple[str, dict[str, str] | None]]]:
    yield name, (url, None)
    page = _open(browser, (url, None))
    changelist = page.context["cl"]
    model = changelist.model
    yield f"{name}: an old page", (f"{url}?{_old_page(changelist, model)}", None)
    for place, column in enumerate(changelist.list_display):
        is_sortable = changelist.sortable_by is None or column in changelist.sortable_by
        if is_sortable and changelist.get_ordering_field(column):
            yield f"{name}: by {column}", (f"{url}?o={place}", None)
            yield f"{name}: by {column}, descending", (f"{url}?o=-{place}", None)
    texts = _texts()
    for spec in changelist.filter_specs:
        for choice in list(spec.choices(changelist))[1 : MOST_CHOICES + 1]:
            label = f"{name}: {spec.title} = {choice['display']}"
            yield label, (url + unescape(str(choice["query_string"])), None)
        parameter = getattr(spec, "parameter_name", "")
        if parameter in texts:
            query = urlencode({parameter: texts[parameter]})
            yield f"{name}: {spec.title}", (f"{url}?{query}", None)
    is_posted = re.search(r'<form method="post"[^>]*id="changelist-search"', page.content.decode())
    for kind, term in _terms().items():
        title = f"{name}: search for {kind}"
        yield title, (url, {"q": term}) if is_posted else (f"{url}?{urlencode({'q': term})}", None)


def _old_page(changelist: Any, model: Any) -> str:
    """Return the parameter for a page in the middle of the list."""
    if not hasattr(changelist, "page_urls"):
        return "p=2"
    return f"before={model.objects.latest('pk').pk // 2}"


def _texts() -> dict[str, str]:
    """Return values of filters that have no choices, by their parameters."""
    event = AuditEvent.objects.exclude(request_id="").exclude(token_id="").order_by("pk")[500]
    token = Token.objects.filter(user__isnull=False).order_by("pk")[100]
    return {
        "day": f"{event.at + timedelta(days=40):%Y-%m-%d}",
        "since": f"{event.at + timedelta(days=60):%Y-%m-%dT%H:%M}",
        "until": f"{event.at + timedelta(days=1):%Y-%m-%dT%H:%M}",
        "ip__exact": str(event.ip),
        "token_id__exact": event.token_id,
        "client_id__exact": event.client_id,
        "request_id__exact": event.request_id,
        "user": token.user.get_username(),
        "client": token.client_id,
        "name": token.name,
        "issued_by": token.created_by,
    }


def _terms() -> dict[str, str]:
    """Return something to search for, of each kind."""
    event = AuditEvent.objects.exclude(request_id="").order_by("pk")[500]
    token = Token.objects.filter(user__isnull=False).order_by("pk")[100]
    return {
        "a public id": token.public_id,
        "a public id that is not there": "zzzzzzzzzzzz",
        "a client": token.client_id,
        "the beginning of a client": "client-1",
        "a client that is not there": "no-such-client",
        "a name": token.name,
        "a user": token.user.get_username(),
        "a request id": event.request_id,
        "a request id that is not there": "f" * 31,
        "an address": str(event.ip),
        "an address that is not there": "198.51.100.7",
        "a day": f"{event.at:%Y-%m-%d}",
    }
