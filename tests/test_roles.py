"""PostgreSQL roles that can't rewrite the audit: tried out as those roles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection
from django.utils import timezone

from tests.audit_log import settle
from tests.conftest import Issue, Write, ask, header
from tests.postgresql import EVENTS, Roles, acting_as, permit, quoted, sql
from tokenauth import services
from tokenauth.audit import summary
from tokenauth.audit.rows import make_row
from tokenauth.audit.sealing.retention import prune
from tokenauth.audit.sealing.roles import apply, harden
from tokenauth.audit.sealing.sealer import seal
from tokenauth.audit.sealing.verification import Verification
from tokenauth.client_info import Actor, ClientInfo
from tokenauth.models import (
    AuditDrained,
    AuditEvent,
    AuditPosition,
    AuditSeal,
    AuditSummary,
    Event,
)

pytestmark = [pytest.mark.urls("tests.urls"), pytest.mark.django_db(transaction=True)]
on_postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="roles are PostgreSQL's"
)

SEALS = AuditSeal._meta.db_table
DRAINED = AuditDrained._meta.db_table
LONG_AGO = datetime(2001, 2, 3, tzinfo=UTC)


@dataclass
class Hardened:
    app: str
    upkeep: str


@pytest.fixture
def hardened(roles: Roles) -> Hardened:
    """Harden roles with odd names that could do everything before."""
    app, upkeep = roles("a\"p'p %s $$ ü"), roles("up'keep\" \\ %(x)s $$ ö")
    for role in (app, upkeep):
        permit(role)
    call_command(
        "tokenauth_audit", "harden", "--role", app, "--maintenance-role", upkeep, "--apply"
    )
    return Hardened(app, upkeep)


@pytest.fixture(autouse=True)
def _keys(configure: Callable[..., None]) -> None:
    configure(AUDIT_SEAL_KEYS={"2026": "k" * 32})


# What the SQL does.


@on_postgresql
def test_the_printed_sql_can_be_run_again_and_again(
    roles: Roles, capsys: pytest.CaptureFixture[str]
) -> None:
    app, upkeep = roles("app"), roles("upkeep")
    call_command("tokenauth_audit", "harden", "--role", app, "--maintenance-role", upkeep)
    printed, said = capsys.readouterr()
    assert said == ""
    assert printed.startswith("BEGIN;\n")  # All of it or nothing.
    assert printed.endswith("COMMIT;\n")
    assert sql("SELECT count(*) FROM pg_trigger WHERE tgname = 'tokenauth_audit_stamp'") == [(0,)]
    for _ in range(2):
        sql(printed)
        assert privileges(app) == {"SELECT", "INSERT"}
        assert privileges(upkeep) == {"SELECT", "INSERT", "DELETE"}
    call_command(
        "tokenauth_audit", "harden", "--role", app, "--maintenance-role", upkeep, "--apply"
    )
    printed, said = capsys.readouterr()
    assert (printed, said) == (
        "",
        f"The role {app} can add and read audit rows, and nothing else.\n",
    )
    assert privileges(app) == {"SELECT", "INSERT"}


def privileges(role: str) -> set[str]:
    names = ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"]
    return {
        name
        for name in names
        if (
            name != "INSERT"
            and sql("SELECT has_table_privilege(%s, %s, %s)", role, EVENTS, name)[0][0]
        )
        or (name == "INSERT" and may_insert(role, "reason") and not may_insert(role, "id"))
    }


def may_insert(role: str, column: str) -> bool:
    query = "SELECT has_column_privilege(%s, %s, %s, 'INSERT')"
    return bool(sql(query, role, EVENTS, column)[0][0])


@on_postgresql
def test_what_everybody_may_is_taken_back(roles: Roles) -> None:
    app, upkeep = roles("app"), roles("upkeep")
    try:
        sql(f"GRANT ALL ON {EVENTS}, {SEALS}, {DRAINED} TO PUBLIC")
        apply(harden(role=app, maintenance_role=upkeep, using="default"), "default")
        assert privileges(app) == {"SELECT", "INSERT"}
    finally:
        sql(f"REVOKE ALL ON {EVENTS}, {SEALS}, {DRAINED} FROM PUBLIC")


@on_postgresql
def test_all_or_nothing_is_applied(roles: Roles) -> None:
    app, upkeep = roles("app"), roles("upkeep")
    permit(app)
    statements = harden(role=app, maintenance_role=upkeep, using="default")
    with pytest.raises(DatabaseError):
        apply([*statements, "SELECT 1/0"], "default")
    assert "UPDATE" in privileges(app)


# As the application's role.


@on_postgresql
@pytest.mark.parametrize("path", ["/drf/", "/plain/", "/async/"])
def test_the_application_works(
    path: str, hardened: Hardened, issue: Issue, calls: list[str]
) -> None:
    with acting_as(hardened.app):
        good, revoked = issue(scopes=["samples:read"]), issue()
        services.revoke(revoked.token)
        assert ask(path, header(good)).status_code == 200
        assert ask(path, header(revoked)).status_code == 401
        seen = list(AuditEvent.objects.order_by("id").values_list("event", flat=True))
        assert not AuditSeal.objects.exists()
    assert seen == [
        *["token.issued", "token.issued", "token.revoked"],
        *["auth.accepted", "auth.rejected", "security.revoked_token_used"],
    ]
    assert calls == [path]


FORBIDDEN = [
    f"UPDATE {EVENTS} SET reason = 'forged'",
    f"UPDATE {EVENTS} SET at = now()",
    f"DELETE FROM {EVENTS}",
    f"TRUNCATE {EVENTS}",
    f"INSERT INTO {EVENTS} SELECT * FROM {EVENTS} ON CONFLICT (id) DO UPDATE SET reason = 'forged'",
    f"INSERT INTO {EVENTS} (id) VALUES (4611686018427387904)",
    f"SELECT * FROM {EVENTS} FOR UPDATE",
    f"ALTER TABLE {EVENTS} ADD COLUMN x int",
    f"ALTER TABLE {EVENTS} DISABLE TRIGGER tokenauth_audit_stamp",
    f"ALTER TABLE {EVENTS} DISABLE TRIGGER ALL",
    f"ALTER TABLE {EVENTS} ALTER COLUMN xid DROP DEFAULT",
    f"DROP TRIGGER tokenauth_audit_stamp ON {EVENTS}",
    f"CREATE TRIGGER other BEFORE INSERT ON {EVENTS} EXECUTE FUNCTION tokenauth_audit_stamp('x')",
    f"CREATE RULE other AS ON INSERT TO {EVENTS} DO INSTEAD NOTHING",
    """CREATE OR REPLACE FUNCTION tokenauth_audit_stamp() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN RETURN NEW; END'""",
    "DROP FUNCTION tokenauth_audit_stamp() CASCADE",
    f"DROP TABLE {EVENTS} CASCADE",
    f"GRANT ALL ON {EVENTS} TO CURRENT_USER",
    "SET session_replication_role = replica",
    f"SET ROLE {connection.settings_dict['USER']}",
    f"UPDATE {SEALS} SET entries = ''",
    f"UPDATE {SEALS} SET request_entries = ''",
    f"DELETE FROM {SEALS}",
    f"TRUNCATE {SEALS}",
    f"INSERT INTO {SEALS} SELECT * FROM {SEALS}",
    f"DROP TABLE {SEALS}",
    f"SELECT * FROM {DRAINED}",
    f"DELETE FROM {DRAINED}",
    # A mark would let the drain take the genuine row for a forged copy.
    f"INSERT INTO {DRAINED} VALUES (gen_random_uuid(), 'x', now())",
]


def refuses(statement: str) -> bool:
    """Tell whether the server refuses for want of a right."""
    before = rights()
    try:
        sql(statement)
    except DatabaseError as error:
        code = getattr(error.__cause__, "sqlstate", None)
        return code == "42501"
    # A grant of a right that the role doesn't have is a warning only.
    return statement.startswith("GRANT") and rights() == before


def rights() -> list[Any]:
    # A grant that changes nothing rewrites the row, which can move it behind the others.
    query = "SELECT relacl::text FROM pg_class WHERE relname IN (%s, %s, %s) ORDER BY relname"
    return sql(query, EVENTS, SEALS, DRAINED)


@on_postgresql
def test_the_application_cannot_rewrite_the_audit(hardened: Hardened, write: Write) -> None:
    write(2)
    list(seal(using="default", by=Actor.from_command()))
    before = stored()
    with acting_as(hardened.app):
        assert [statement for statement in FORBIDDEN if not refuses(statement)] == []
        assert not refuses(f"SELECT * FROM {EVENTS}")
    assert stored() == before
    assert privileges(hardened.app) == {"SELECT", "INSERT"}
    assert sql("SELECT tgenabled FROM pg_trigger WHERE tgname = 'tokenauth_audit_stamp'") == [
        ("O",)
    ]


def stored() -> list[Any]:
    return [*AuditEvent.objects.order_by("id").values(), *AuditSeal.objects.values()]


@on_postgresql
def test_time_and_transaction_are_the_servers(hardened: Hardened) -> None:
    event = make_row(Event.AUTH_ACCEPTED, ClientInfo()).as_event()
    event.at = LONG_AGO
    event.xid = 5
    with acting_as(hardened.app):
        event.save()
    row = AuditEvent.objects.get()
    assert abs(row.at - timezone.now()) < timedelta(minutes=1)
    assert row.xid == int(sql(f"SELECT xmin::text FROM {EVENTS}")[0][0])


@on_postgresql
def test_the_application_cannot_seal_or_prune(hardened: Hardened, write: Write) -> None:
    write(2)
    with acting_as(hardened.app), pytest.raises(DatabaseError):
        list(seal(using="default", by=Actor.from_command()))
    list(seal(using="default", by=Actor.from_command()))
    with acting_as(hardened.app), pytest.raises(DatabaseError):
        prune(before=timezone.now(), using="default", by=Actor.from_command())
    assert AuditEvent.objects.filter(event="auth.accepted").count() == 2


@on_postgresql
@pytest.mark.parametrize("which", ["app", "upkeep"])
def test_both_roles_can_fill_the_summary(which: str, hardened: Hardened, write: Write) -> None:
    write(3)
    with acting_as(getattr(hardened, which)):
        assert summary.catch_up(using="default")
        summary.start_over(using="default")
        assert sum(summary.summarise(using="default")) == 3
        assert refuses(f"TRUNCATE {AuditSummary._meta.db_table}")


# As the role for upkeep.


@on_postgresql
def test_upkeep_can_drain_seal_verify_and_prune(hardened: Hardened, write: Write) -> None:
    by = Actor.from_command()
    with acting_as(hardened.upkeep):
        write(3, at=LONG_AGO)
        write(1)
        [made] = seal(using="default", by=by)
        assert made.count == 4
        assert list(Verification(using="default").findings()) == []
        assert prune(before=LONG_AGO + timedelta(days=1), using="default", by=by) == 3
        settle()
        list(seal(using="default", by=by))
        assert prune(before=timezone.now(), using="default", by=by) == 3
        assert list(Verification(using="default").findings()) == []
    assert set(AuditEvent.objects.values_list("event", flat=True)) == {
        "audit.sealed",
        "audit.pruned",
    }


@on_postgresql
def test_upkeep_keeps_the_times_but_not_the_transactions(hardened: Hardened) -> None:
    rows = [make_row(Event.AUTH_ACCEPTED, ClientInfo()).as_event() for _ in range(2)]
    for row in rows:
        row.at, row.xid = LONG_AGO, 5
    with acting_as(hardened.upkeep):
        AuditEvent.objects.bulk_create(rows)
        assert refuses(f"UPDATE {EVENTS} SET reason = 'forged'")
        assert refuses(f"TRUNCATE {EVENTS}")
        assert refuses(f"DELETE FROM {SEALS}")
        assert refuses(f"UPDATE {SEALS} SET mac = ''")
        assert refuses(f"UPDATE {DRAINED} SET digest = ''")
    found = list(AuditEvent.objects.values_list("at", "xid"))
    assert found == [(LONG_AGO, int(xid)) for (xid,) in sql(f"SELECT xmin::text FROM {EVENTS}")]


@on_postgresql
def test_everybody_else_gets_the_servers_time_too(hardened: Hardened, write: Write) -> None:
    write(1, at=LONG_AGO)
    assert AuditEvent.objects.get().at > LONG_AGO + timedelta(days=1)


# Rights that are taken away.


@on_postgresql
@pytest.mark.parametrize("path", ["/drf/", "/plain/", "/async/"])
def test_without_the_right_to_insert_nobody_gets_in(
    path: str, roles: Roles, issue: Issue, calls: list[str]
) -> None:
    token, app = issue(scopes=["samples:read"]), roles("app")
    permit(app)
    sql(f"REVOKE INSERT ON {EVENTS} FROM {quoted(app)}")
    with acting_as(app):
        for headers in (header(token), {"X-Api-Key": "f" * 40}, {}):
            for asgi in (False, True):
                response = ask(path, headers, asgi=asgi)
                assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert calls == []
    assert list(AuditEvent.objects.values_list("event", flat=True)) == ["token.issued"]


# As a role that would hide the audit from its own connection.

HIDING = [
    f"CREATE TEMP TABLE {EVENTS} (id int)",
    f"CREATE TABLE {EVENTS}_mine (id int)",
    f"SELECT 1 AS id INTO TEMP {EVENTS}",
    f"CREATE VIEW {EVENTS}_view AS SELECT 1",
    "CREATE SCHEMA mine",
    "CREATE FUNCTION lower(varchar) RETURNS varchar LANGUAGE sql AS 'SELECT $1'",
    "CREATE OPERATOR = (LEFTARG = varchar, RIGHTARG = int, FUNCTION = varchareq)",
    "CREATE TYPE mine AS (a int)",
    "CREATE FUNCTION pg_temp.lower(varchar) RETURNS varchar LANGUAGE sql AS 'SELECT $1'",
]


@on_postgresql
@pytest.mark.parametrize("which", ["app", "upkeep"])
@pytest.mark.parametrize("statement", HIDING, ids=lambda text: text[:22])
def test_it_cannot_put_anything_in_front_of_the_audit(
    statement: str, which: str, hardened: Hardened
) -> None:
    with acting_as(getattr(hardened, which)):
        with pytest.raises(DatabaseError, match="permission denied"):
            sql(statement)
        sql(f"SELECT count(*) FROM {EVENTS}")


GIVEN = [
    ("GRANT TEMPORARY ON DATABASE {db} TO {role}", ""),
    ("GRANT CREATE ON DATABASE {db} TO PUBLIC", ""),
    ("GRANT CREATE ON SCHEMA public TO {role}", ""),
    ("GRANT CREATE ON SCHEMA public TO PUBLIC", ""),
    ("GRANT TEMPORARY ON DATABASE {db} TO {other}", "can create schemas or temporary tables"),
    ("GRANT CREATE ON SCHEMA public TO {other}", "can create objects in the schema public"),
    ("CREATE SCHEMA {role} AUTHORIZATION {role}", "can create objects in the schema {role}"),
    ("CREATE SCHEMA s; GRANT CREATE ON SCHEMA s TO {other}", "can create objects in the schema s"),
    ("CREATE SCHEMA s; GRANT CREATE ON SCHEMA s TO PUBLIC", "can create objects in the schema s"),
    (
        "CREATE SCHEMA s; CREATE TABLE s.tokenauth_auditevent (id int); "  # noqa: ISC004
        "ALTER TABLE s.tokenauth_auditevent OWNER TO {role}",
        "owns s.tokenauth_auditevent",
    ),
]


@on_postgresql
@pytest.mark.parametrize("inherit", ["INHERIT", "NOINHERIT"])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(("grant", "problem"), GIVEN)
def test_rights_to_hide_the_audit_are_revoked_or_refused(
    grant: str, problem: str, which: int, inherit: str, roles: Roles
) -> None:
    other = roles("other", "NOLOGIN")
    pair = [roles("app", f"LOGIN {inherit}"), roles("upkeep", f"LOGIN {inherit}")]
    names = {"role": pair[which], "other": other, "db": connection.settings_dict["NAME"]}
    sql(f"GRANT {other} TO {pair[which]}")
    sql(grant.format(**names))
    try:
        statements = harden(role=pair[0], maintenance_role=pair[1], using="default")
        if problem:
            with pytest.raises(DatabaseError, match=problem.format(**names)):
                apply(statements, "default")
        else:
            apply(statements, "default")
            with acting_as(pair[which]), pytest.raises(DatabaseError, match="permission denied"):
                sql(f"CREATE TEMP TABLE {EVENTS} (id int)")
    finally:
        sql("DROP SCHEMA IF EXISTS s CASCADE")
        sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        sql(f"REVOKE CREATE ON DATABASE {names['db']} FROM PUBLIC")


@on_postgresql
def test_rights_that_another_role_granted_are_refused(roles: Roles) -> None:
    app, upkeep, between = roles("app"), roles("upkeep"), roles("between", "NOLOGIN")
    database = connection.settings_dict["NAME"]
    sql(f"GRANT TEMPORARY ON DATABASE {database} TO {between} WITH GRANT OPTION")
    with connection.cursor() as cursor:
        cursor.execute(f"SET ROLE {between}")
        cursor.execute(f"GRANT TEMPORARY ON DATABASE {database} TO {app}")
        cursor.execute("RESET ROLE")
    with pytest.raises(DatabaseError, match=f"The role {app} can create schemas or temporary"):
        apply(harden(role=app, maintenance_role=upkeep, using="default"), "default")


@on_postgresql
def test_an_owner_of_the_tables_only_is_told_who_must_do_it(roles: Roles) -> None:
    """Where the database is another role's, REVOKE only warns."""
    app, upkeep, owner = roles("app"), roles("upkeep"), roles("owner")
    usual = connection.settings_dict["USER"]
    tables = (EVENTS, SEALS, DRAINED, AuditSummary._meta.db_table, AuditPosition._meta.db_table)
    for table in tables:
        sql(f"ALTER TABLE {table} OWNER TO {owner}")
    sql(f"GRANT CREATE ON SCHEMA public TO {owner}")
    try:
        with acting_as(owner):
            statements = harden(role=app, maintenance_role=upkeep, using="default")
            with pytest.raises(DatabaseError, match="Revoke that as the owner of the database"):
                apply(statements, "default")
    finally:
        for table in tables:
            sql(f"ALTER TABLE {table} OWNER TO {quoted(usual)}")


@on_postgresql
def test_a_schema_of_its_own_can_be_used(roles: Roles) -> None:
    app, upkeep = roles("app"), roles("upkeep")
    sql("CREATE SCHEMA s")
    tables = [EVENTS, SEALS, "tokenauth_token"]
    try:
        for table in tables:
            sql(f"ALTER TABLE {table} SET SCHEMA s")
        sql("SET search_path TO s, public")
        apply(harden(role=app, maintenance_role=upkeep, using="default"), "default")
        assert sql("SELECT has_schema_privilege(%s, 's', 'USAGE')", app) == [(True,)]
        assert sql("SELECT has_schema_privilege(%s, 's', 'USAGE')", upkeep) == [(True,)]
        assert sql("SELECT has_schema_privilege(%s, 's', 'CREATE')", app) == [(False,)]
    finally:
        for table in tables:
            sql(f"ALTER TABLE s.{table} SET SCHEMA public")
        sql("RESET search_path")
        sql("DROP SCHEMA s CASCADE")
