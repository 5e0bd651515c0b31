"""The audit's tables: rows are added and read, nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Permission
from django.core import serializers
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.db.models import Model

from tests.conftest import Issue
from tokenauth.admin.event_filters import of_events
from tokenauth.audit.rows import events_of
from tokenauth.exceptions import AppendOnly
from tokenauth.models import (
    AuditDrained,
    AuditEvent,
    AuditPosition,
    AuditSeal,
    AuditSummary,
    Event,
    Outcome,
    Severity,
    Takeover,
    Token,
)

EVENTS = AuditEvent._meta.db_table


def _event(**fields: Any) -> AuditEvent:
    return AuditEvent(
        **{
            "event": Event.AUTH_ACCEPTED.value,
            "outcome": Outcome.SUCCESS.value,
            "severity": Severity.INFO.value,
            "reason": "original",
            **fields,
        }
    )


@pytest.fixture
def event(db: None) -> AuditEvent:
    """Write one audit row."""
    row = _event()
    row.save()
    return row


def _stored() -> list[dict[str, Any]]:
    return [dict(row) for row in AuditEvent.objects.order_by("pk").values()]


def _forged(event: AuditEvent) -> AuditEvent:
    event.reason = "forged"
    return event


def _load_as_fixture(event: AuditEvent) -> None:
    for row in serializers.deserialize("json", serializers.serialize("json", [_forged(event)])):
        row.save()


objects = AuditEvent.objects

CHANGES: dict[str, Callable[[AuditEvent], object]] = {
    "save": lambda event: _forged(event).save(),
    "save update_fields": lambda event: _forged(event).save(update_fields=["reason"]),
    "save force_update": lambda event: _forged(event).save(force_update=True),
    "save of a copy": lambda event: _event(pk=event.pk, reason="forged").save(),
    "save of a copy, forced": lambda event: _event(pk=event.pk, reason="forged").save(
        force_update=True
    ),
    "save as if new": lambda event: _event(
        pk=event.pk, event_id=event.event_id, reason="forged"
    ).save(),
    "save of what was read": lambda event: _forged(objects.get(pk=event.pk)).save(),
    "Model.save": lambda event: Model.save(_forged(event)),
    "save_base": lambda event: _forged(event).save_base(),
    "save_base raw": lambda event: _forged(event).save_base(raw=True),
    "loaddata": _load_as_fixture,
    "delete": lambda event: event.delete(),
    "delete of what was read": lambda event: objects.get(pk=event.pk).delete(),
    "update": lambda _: objects.update(reason="forged"),
    "filter update": lambda event: objects.filter(pk=event.pk).update(reason="forged"),
    "using update": lambda _: objects.using("default").update(reason="forged"),
    "base manager update": lambda _: AuditEvent._base_manager.update(reason="forged"),
    "default manager update": lambda _: AuditEvent._default_manager.all().update(reason="forged"),
    "queryset delete": lambda _: objects.all().delete(),
    "filter delete": lambda event: objects.filter(pk=event.pk).delete(),
    "base manager delete": lambda _: AuditEvent._base_manager.all().delete(),
    "bulk_update": lambda event: objects.bulk_update([_forged(event)], ["reason"]),
    "update_or_create": lambda event: objects.update_or_create(
        {"reason": "forged"}, event_id=event.event_id
    ),
    "bulk_create update_conflicts": lambda event: objects.bulk_create(
        [_event(event_id=event.event_id, reason="forged")],
        update_conflicts=True,
        update_fields=["reason"],
        unique_fields=["event_id"],
    ),
}

ASYNC_CHANGES: dict[str, Callable[[AuditEvent], Awaitable[object]]] = {
    "asave": lambda event: _forged(event).asave(),
    "adelete": lambda event: event.adelete(),
    "aupdate": lambda _: objects.aupdate(reason="forged"),
    "filter aupdate": lambda event: objects.filter(pk=event.pk).aupdate(reason="forged"),
    "queryset adelete": lambda _: objects.all().adelete(),
    "abulk_update": lambda event: objects.abulk_update([_forged(event)], ["reason"]),
    "aupdate_or_create": lambda event: objects.aupdate_or_create(
        {"reason": "forged"}, event_id=event.event_id
    ),
    "abulk_create update_conflicts": lambda event: objects.abulk_create(
        [_event(event_id=event.event_id, reason="forged")],
        update_conflicts=True,
        update_fields=["reason"],
        unique_fields=["event_id"],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_audit_rows_cannot_be_changed_by(name: str, event: AuditEvent) -> None:
    before = _stored()
    # The unique keys refuse a copy that claims to be new.
    with pytest.raises((AppendOnly, IntegrityError)), transaction.atomic():
        CHANGES[name](event)
    assert _stored() == before


@pytest.mark.parametrize("name", ASYNC_CHANGES)
def test_audit_rows_cannot_be_changed_asynchronously_by(name: str, event: AuditEvent) -> None:
    before = _stored()

    async def change() -> None:
        await ASYNC_CHANGES[name](event)

    with pytest.raises(AppendOnly):
        async_to_sync(change)()
    assert _stored() == before


@pytest.mark.django_db
def test_audit_rows_can_be_added() -> None:
    _event(reason="one").save()
    AuditEvent.objects.create(**{**_stored()[0], "id": None, "event_id": _event().event_id})
    AuditEvent.objects.bulk_create([_event(reason="three"), _event(reason="four")])
    async_to_sync(_event(reason="five").asave)()
    assert [row["reason"] for row in _stored()] == ["one", "one", "three", "four", "five"]


def test_bulk_create_may_skip_what_is_there(event: AuditEvent) -> None:
    before = _stored()
    objects.bulk_create([_event(pk=event.pk, reason="other")], ignore_conflicts=True)
    assert _stored() == before


def test_audit_rows_outlive_the_user_and_the_token(
    issue: Issue, make_user: Callable[..., Any]
) -> None:
    user = make_user("jo")
    issue(user=user)
    before = _stored()
    pk = str(user.pk)
    user.delete()
    assert _stored()[: len(before)] == before
    assert {row["user_id"] for row in _stored()} == {pk}


@pytest.mark.django_db
def test_nobody_can_be_permitted_to_change_the_audit() -> None:
    permissions = Permission.objects.filter(content_type__model__startswith="audit")
    names = sorted(permission.codename for permission in permissions)
    assert names == ["export_auditevent", "view_auditevent"]


@pytest.mark.django_db
def test_an_event_that_nobody_knows_is_refused_by_the_database() -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        _event(event="auth.other").save()


# Seals.


def _seal(**fields: Any) -> AuditSeal:
    numbers = {"number": 1, "first_id": 1, "last_id": 2, "count": 2}
    times = dict.fromkeys(("sealed_at", "oldest_at", "newest_at"), 1)
    texts = {"kind": "rows", "key_id": "k", "digest": "d", "cursor": "{}", "mac": "m"}
    return AuditSeal(**{**numbers, **times, **texts, "entries": b"\x00\xff", **fields})


SEAL_CHANGES: dict[str, Callable[[AuditSeal], object]] = {
    "save": lambda seal: seal.save(),
    "save update_fields": lambda seal: seal.save(update_fields=["mac"]),
    "save of a copy": lambda _: _seal(mac="forged").save(),
    "save of a copy, forced": lambda _: _seal(mac="forged").save(force_update=True),
    "save_base raw": lambda seal: seal.save_base(raw=True),
    "delete": lambda seal: seal.delete(),
    "update": lambda _: AuditSeal.objects.update(mac="forged"),
    "base manager update": lambda _: AuditSeal._base_manager.update(mac="forged"),
    "queryset delete": lambda _: AuditSeal.objects.all().delete(),
    "bulk_update": lambda seal: AuditSeal.objects.bulk_update([seal], ["mac"]),
    "update_or_create": lambda _: AuditSeal.objects.update_or_create({"mac": "forged"}, number=1),
    "bulk_create update_conflicts": lambda _: AuditSeal.objects.bulk_create(
        [_seal(mac="forged")],
        update_conflicts=True,
        update_fields=["mac"],
        unique_fields=["number"],
    ),
}


@pytest.mark.django_db
@pytest.mark.parametrize("name", SEAL_CHANGES)
def test_seals_cannot_be_changed_by(name: str) -> None:
    seal = _seal()
    seal.save()
    before = list(AuditSeal.objects.values())
    seal.mac = "forged"
    with pytest.raises((AppendOnly, IntegrityError)), transaction.atomic():
        SEAL_CHANGES[name](seal)
    assert list(AuditSeal.objects.values()) == before


@pytest.mark.django_db
def test_a_seal_is_shown_as_its_head_and_keeps_its_bytes() -> None:
    _seal(entries=bytes(range(256)) * 1_250).save()
    seal = AuditSeal.objects.get()
    assert str(seal) == "1:m"
    assert bytes(seal.entries) == bytes(range(256)) * 1_250


# Transactions' numbers.


def _insert(event: AuditEvent) -> None:
    """Insert as somebody does who knows nothing of Django."""
    fields = [f for f in AuditEvent._meta.concrete_fields if f.attname not in {"id", "xid"}]
    values = [f.get_db_prep_save(getattr(event, f.attname), connection) for f in fields]
    quote = connection.ops.quote_name
    columns = ", ".join(quote(str(f.column)) for f in fields)
    with connection.cursor() as cursor:
        places = ", ".join(["%s"] * len(fields))
        cursor.execute(f"INSERT INTO {EVENTS} ({columns}) VALUES ({places})", values)


INSERTS: dict[str, Callable[[AuditEvent], object]] = {
    "save": lambda event: event.save(),
    "bulk_create": lambda event: AuditEvent.objects.bulk_create([event]),
    "bulk_create of what may be there": lambda event: AuditEvent.objects.bulk_create(
        [event], ignore_conflicts=True
    ),
    "SQL": _insert,
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", INSERTS)
def test_a_row_has_the_number_of_its_transaction(name: str) -> None:
    for _ in range(2):
        INSERTS[name](_event())
    with transaction.atomic():
        for _ in range(2):
            INSERTS[name](_event())
    numbers = list(AuditEvent.objects.order_by("id").values_list("xid", flat=True))
    if connection.vendor != "postgresql":
        assert numbers == [0, 0, 0, 0]
        return
    first, second, third, fourth = numbers
    assert first < second < third == fourth
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT xmin::text::bigint FROM {EVENTS} ORDER BY id")
        assert [number % 2**32 for number in numbers] == [xmin for (xmin,) in cursor.fetchall()]


@pytest.mark.django_db
@pytest.mark.skipif(connection.vendor != "postgresql", reason="it is PostgreSQL that relies on it")
def test_the_transactions_column_comes_before_the_id() -> None:
    with connection.cursor() as cursor:
        names = [
            column.name for column in connection.introspection.get_table_description(cursor, EVENTS)
        ]
    assert names[:2] == ["xid", "id"]


# The migration.


@pytest.fixture
def migrated_back(transactional_db: None) -> Iterator[None]:
    """Take the app's tables away; whatever happens, put them there again."""
    call_command("migrate", "tokenauth", "zero", verbosity=0)
    yield
    call_command("migrate", "tokenauth", verbosity=0)


def _ours() -> list[str]:
    return [
        name for name in connection.introspection.table_names() if name.startswith("tokenauth_")
    ]


def test_the_migration_can_be_taken_back(migrated_back: None) -> None:
    assert _ours() == []
    call_command("migrate", "tokenauth", verbosity=0)
    assert set(_ours()) == {
        model._meta.db_table
        for model in (
            AuditDrained,
            AuditEvent,
            AuditPosition,
            AuditSeal,
            AuditSummary,
            Takeover,
            Token,
        )
    }
    _event().save()
    _seal().save()
    with connection.cursor() as cursor:
        constraints = connection.introspection.get_constraints(cursor, EVENTS)
    expected = {"tokenauth_audit_token", "tokenauth_audit_client"}
    if connection.vendor == "postgresql":
        expected.add("tokenauth_audit_brin")
        assert constraints["tokenauth_audit_brin"]["columns"] == ["at", "xid"]
        assert constraints["tokenauth_audit_brin"]["type"] == "brin"
    assert expected <= set(constraints)
    call_command("migrate", "tokenauth", "zero", verbosity=0)
    assert _ours() == []


# Indexes.


def _indexes() -> dict[str, Any]:
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, EVENTS)
    return {name: one for name, one in found.items() if one["index"] or one["unique"]}


@pytest.mark.django_db
def test_nothing_but_the_key_is_unique() -> None:
    constraints = _indexes().values()
    unique = [one["columns"] for one in constraints if one["unique"] or one["primary_key"]]
    assert unique in ([["id"]], [])  # SQLite's key is the table itself.


@pytest.mark.django_db
def test_an_accepted_row_maintains_at_most_four_b_trees() -> None:
    assert {name for name in _indexes() if name.startswith("tokenauth_audit_")} == {
        *("tokenauth_audit_token", "tokenauth_audit_client"),
        *(["tokenauth_audit_brin"] if connection.vendor == "postgresql" else []),
        *(
            ["tokenauth_audit_request", "tokenauth_audit_event", "tokenauth_audit_failed_ip"]
            if connection.features.supports_partial_indexes
            else []
        ),
    }


@pytest.mark.django_db
def test_the_check_is_silent_about_indexes_that_a_database_does_not_have() -> None:
    assert AuditEvent.check(databases=["default"]) == []


FILTERS: dict[str, Any] = {
    "tokenauth_audit_token": objects.filter(token_id="abcdefabcdef"),
    "tokenauth_audit_client": objects.filter(client_id="jo"),
    "tokenauth_audit_request": objects.filter(request_id="r-1").exclude(request_id=""),
    "tokenauth_audit_event": objects.filter(event=Event.TOKEN_REVOKED).exclude(
        event=Event.AUTH_ACCEPTED
    ),
    "tokenauth_audit_failed_ip": objects.filter(ip="192.0.2.7", outcome=Outcome.FAILURE),
}


@pytest.mark.django_db
@pytest.mark.parametrize("name", FILTERS)
def test_an_index_finds_rows_and_orders_them(name: str) -> None:
    if name not in _indexes():
        pytest.skip("this database has no partial indexes")
    objects.bulk_create([_event(client_id=f"client-{number}") for number in range(50)])
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # It reads a table of a few rows from end to end; not if an index can be used.
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute("SET LOCAL enable_bitmapscan = off")
    plan = FILTERS[name].order_by("-id")[:10].explain()
    assert name in plan, plan
    if name != "tokenauth_audit_request":  # Few rows have the same id of a request.
        assert not {"sort", "temp"} & set(plan.lower().split()), plan


@pytest.mark.django_db
@pytest.mark.parametrize(
    "events",
    [[Event.TOKEN_REVOKED.value], *map(events_of, ("low", "medium", "high"))],
    ids=["one", "low", "medium", "high"],
)
def test_the_admin_finds_rare_events_by_their_index(events: list[str]) -> None:
    if "tokenauth_audit_event" not in _indexes():
        pytest.skip("this database has no partial indexes")
    found = objects.filter(of_events(events), id__lte=20_000)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            for way in ("seqscan", "indexscan"):
                cursor.execute(f"SET LOCAL enable_{way} = off")
    assert "tokenauth_audit_event" in found.order_by().explain()
