"""Whatever a client sends, what is stored of it is safe, short, and the same everywhere.

The expected texts are written out, so that every database and both servers are held to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncClient, Client, override_settings

from tests.conftest import Issue, ask, header, without_sync_middleware
from tokenauth.logs import JSONFormatter
from tokenauth.models import AuditEvent

pytestmark = pytest.mark.urls("tests.urls")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("\x00\x07\n", r"\x00\x07\n"),
        ("\ud800", r"\ud800"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("\\n", r"\\n"),
        ("naïve 😀", "naïve 😀"),
        ("x" * 100_000, "x" * 300),
        ("\x00" * 100_000, r"\x00" * 75),
        ("😀" * 400, "😀" * 300),
    ],
)
def test_text_is_safe_and_the_same_on_every_database(
    client: Client, sent: str, stored: str
) -> None:
    client.get("/plain/", HTTP_USER_AGENT=sent)
    assert AuditEvent.objects.get().user_agent == stored


@pytest.mark.django_db
def test_a_hostile_user_name_is_escaped(issue: Issue, make_user: Callable[..., Any]) -> None:
    user = make_user("jo")
    type(user).objects.filter(pk=user.pk).update(username="jo\r\nroot\u202e")
    token = issue(client_id="bot", user=user)
    ask("/any/plain/", header(token))
    assert AuditEvent.objects.latest("id").user_name == r"jo\r\nroot\u202e"


def as_sent(text: str) -> str:
    """Return how the bytes of ``text`` in UTF-8 look in a header: Latin-1."""
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


HEADERS = [
    ("a\x00b", r"a\x00b"),
    ("\x01\x07\x08\x1b[31mred\x7f", r"\x01\x07\x08\x1b[31mred\x7f"),
    ("one\r\ntwo\ttab", r"one\r\ntwo\ttab"),
    ("\x80\x9f\xa0\xad", r"\x80\x9f\xa0\xad"),
    (as_sent("\ud800"), r"í\xa0\x80"),
    (as_sent("\u202eevil\u2066"), r"â\x80®evilâ\x81¦"),
    (as_sent("\u2028"), r"â\x80¨"),
    (r"\x00 \u202e", r"\\x00 \\u202e"),
    ("<script>'\"; DROP TABLE x --", "<script>'\"; DROP TABLE x --"),
    ("%s %(a)s {0}", "%s %(a)s {0}"),
    ("é", "é"),
]
PATHS = [
    ("a%00b", r"a\x00b"),
    ("%01%07%1b[31m%7f", r"\x01\x07\x1b[31m\x7f"),
    ("one%0d%0atwo%09tab", r"one\r\ntwo\ttab"),
    ("%c2%80%c2%a0%c2%ad", r"\x80\xa0\xad"),
    ("%e2%80%aeevil%e2%81%a6", r"\u202eevil\u2066"),
    ("%e2%80%a8", r"\u2028"),
    ("%ef%bb%bf%e2%80%8b", r"\ufeff\u200b"),
    ("%f3%a0%80%81", r"\U000e0001"),
    ("%5cx00", r"\\x00"),
    ("%f0%9f%98%80%c3%bc", "😀ü"),
]


def answer(asgi: bool, path: str, headers: dict[str, str]) -> AuditEvent:
    if not asgi:
        ask(path, headers)
        return AuditEvent.objects.get()
    fields = [(name.lower().encode(), text.encode("latin-1")) for name, text in headers.items()]
    # Not by ``get``, which decodes paths as no server does.
    request = async_to_sync(AsyncClient().request)
    with override_settings(MIDDLEWARE=without_sync_middleware()):
        request(method="GET", path=unquote(path), headers=fields)
    return AuditEvent.objects.get()


@pytest.mark.django_db
@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize(("sent", "stored"), HEADERS)
def test_headers_are_escaped(
    sent: str, stored: str, asgi: bool, configure: Callable[..., None]
) -> None:
    configure(ACTOR_HEADER="username")
    row = answer(asgi, "/plain/", {"User-Agent": sent, "username": sent, "X-Request-ID": sent})
    assert (row.user_agent, row.claimed_actor, row.request_id) == (stored, stored, "")


@pytest.mark.django_db
@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize(("sent", "stored"), PATHS)
def test_paths_are_escaped(sent: str, stored: str, asgi: bool) -> None:
    row = answer(asgi, f"/anything/{sent}", {})
    assert row.path == f"/anything/{stored}"


@pytest.mark.django_db
def test_a_path_that_is_not_utf_8() -> None:
    ask("/anything/%ed%a0%80%ff")
    assert AuditEvent.objects.get().path == "/anything/%ED%A0%80%FF"


@pytest.mark.django_db
def test_a_path_with_lone_surrogates() -> None:
    """No server should pass on such a text; the row is safe all the same."""
    row = answer(True, "/anything/\ud800\udcff", {})
    assert row.path == r"/anything/\ud800\udcff"


@pytest.mark.django_db
@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("x" * 100_000, "x" * 1_000),
        ("\x1b" * 100_000, r"\x1b" * 250),
        ("\x80\n" * 50_000, r"\x80\n" * 200),
    ],
)
def test_what_is_long_is_cut(
    sent: str, stored: str, asgi: bool, configure: Callable[..., None]
) -> None:
    configure(ACTOR_HEADER="username")
    quoted = sent.replace("\x1b", "%1b").replace("\x80", "%c2%80").replace("\n", "%0a")
    headers = {"User-Agent": sent, "username": sent, "X-Request-ID": sent}
    row = answer(asgi, f"/anything/{quoted}", headers)
    assert row.user_agent == stored[:300]
    assert row.claimed_actor == stored[:150]
    assert row.path == ("/anything/" + stored)[:500]
    assert row.request_id == ""


@pytest.mark.django_db
def test_an_odd_method_is_cut_too() -> None:
    Client().generic("X" * 1_000, "/plain/")
    assert AuditEvent.objects.get().method == "X" * 16


@pytest.mark.django_db
def test_a_line_of_the_log_is_one_line(
    configure: Callable[..., None], caplog: pytest.LogCaptureFixture, issue: Issue
) -> None:
    configure(ACTOR_HEADER="username")
    caplog.set_level("INFO", "tokenauth.audit")
    for sent, _ in HEADERS:
        caplog.clear()
        ask("/plain/", {**header(issue()), "User-Agent": sent, "username": sent})
        for record in caplog.records:
            assert record.getMessage().isprintable()
            assert JSONFormatter().format(record).isprintable()
