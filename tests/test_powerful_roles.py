"""Roles that could undo the hardening are refused: it would promise what it doesn't keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import DatabaseError, connection

from tests.postgresql import EVENTS, Roles, acting_as, quoted, sql
from tokenauth.audit.sealing.roles import apply, harden
from tokenauth.exceptions import SealError
from tokenauth.models import AuditDrained, AuditSeal

pytestmark = pytest.mark.django_db(transaction=True)
on_postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="roles are PostgreSQL's"
)

SEALS = AuditSeal._meta.db_table
DRAINED = AuditDrained._meta.db_table

Power = Callable[[Roles, str, str], object]


def grant(role: str, to: str) -> None:
    sql(f"GRANT {quoted(role)} TO {quoted(to)}")


def _owns(what: str) -> Power:
    return lambda _roles, app, _: sql(f"ALTER {what} OWNER TO {quoted(app)}")


def _member_of_owner(roles: Roles, app: str, _: str) -> None:
    owner, between = roles("owner", ""), roles("between", "NOINHERIT")
    sql(f"ALTER TABLE {EVENTS} OWNER TO {quoted(owner)}")
    grant(owner, between)
    grant(between, app)


def _owns_the_database_alone(_roles: Roles, app: str, _: str) -> None:
    # On servers before 15, who owns the database doesn't own its schema.
    sql(f"ALTER SCHEMA public OWNER TO {quoted(connection.settings_dict['USER'])}")
    sql(f"ALTER DATABASE {connection.settings_dict['NAME']} OWNER TO {quoted(app)}")


def _member_of_writers(roles: Roles, app: str, _: str) -> None:
    writers = roles("writers", "")
    sql(f"GRANT DELETE ON {SEALS} TO {quoted(writers)}")
    grant(writers, app)


POWERS: dict[str, tuple[Power, str]] = {
    "superuser": (lambda _, app, __: sql(f"ALTER ROLE {quoted(app)} SUPERUSER"), "superuser"),
    "createrole": (lambda _, app, __: sql(f"ALTER ROLE {quoted(app)} CREATEROLE"), "superuser"),
    "member of a superuser": (
        lambda roles, app, _: grant(roles("root", "SUPERUSER"), app),
        "superuser",
    ),
    "writer of all data": (lambda _, app, __: grant("pg_write_all_data", app), "superuser"),
    "program runner": (lambda _, app, __: grant("pg_execute_server_program", app), "superuser"),
    "file writer": (lambda _, app, __: grant("pg_write_server_files", app), "superuser"),
    "owner of the events": (_owns(f"TABLE {EVENTS}"), "owns"),
    "owner of the seals": (_owns(f"TABLE {SEALS}"), "owns"),
    "owner of the marks": (_owns(f"TABLE {DRAINED}"), "owns"),
    "owner of the schema": (_owns("SCHEMA public"), "owns"),
    "owner of the database": (
        lambda roles, app, _: _owns(f"DATABASE {connection.settings_dict['NAME']}")(roles, app, ""),
        "owns",
    ),
    "owner of the database, not of the schema": (_owns_the_database_alone, "owns"),
    "member of the owner": (_member_of_owner, "owns"),
    "member of upkeep": (lambda _, app, upkeep: grant(upkeep, app), "can become"),
    "member of writers": (_member_of_writers, "more than SELECT and INSERT"),
}


# The owner's REVOKE takes back what the owner granted, nothing else.
GRANTS = {
    "all": f"GRANT ALL ON {EVENTS} TO %s",
    "all to everybody": f"GRANT ALL ON {EVENTS} TO PUBLIC",
    "inserting any id": f"GRANT INSERT ON {EVENTS} TO %s",
    "a column": f"GRANT UPDATE (reason) ON {EVENTS} TO %s",
    "a column to everybody": f"GRANT UPDATE (reason) ON {EVENTS} TO PUBLIC",
    "seals": f"GRANT UPDATE ON {SEALS} TO %s",
    "marks": f"GRANT INSERT ON {DRAINED} TO %s",
    "the sequence": f"GRANT UPDATE ON SEQUENCE {EVENTS}_id_seq TO %s",
}


@pytest.fixture
def boss(roles: Roles) -> Iterator[str]:
    """Return a role that may pass on all rights to the audit."""
    name = roles("boss")
    for what in (f"{EVENTS}, {SEALS}, {DRAINED}", f"SEQUENCE {EVENTS}_id_seq"):
        sql(f"GRANT ALL ON {what} TO {quoted(name)} WITH GRANT OPTION")
    yield name
    with acting_as(name):
        everybody = ", ".join(["PUBLIC", *map(quoted, roles.made)])
        sql(f"REVOKE ALL ON {EVENTS}, {SEALS}, {DRAINED} FROM {everybody}")


@on_postgresql
@pytest.mark.parametrize("given", GRANTS)
def test_what_somebody_else_granted_is_refused(given: str, boss: str, roles: Roles) -> None:
    app, upkeep = roles("app"), roles("upkeep")
    with acting_as(boss):
        sql(GRANTS[given].replace("%s", quoted(app)))
    with pytest.raises(SealError, match="only that role can take it back") as caught:
        harden(role=app, maintenance_role=upkeep, using="default")
    assert repr(boss) in str(caught.value)
    assert repr(app) in str(caught.value)
    with pytest.raises(SealError, match="only that role can take it back"):
        harden(role=upkeep, maintenance_role=app, using="default")


@on_postgresql
@pytest.mark.parametrize("given", GRANTS)
def test_what_somebody_else_granted_to_a_new_role_is_refused(
    given: str, boss: str, roles: Roles
) -> None:
    """PUBLIC has what a role gets that isn't there yet."""
    app = f"{roles('app')}-new"
    with acting_as(boss):
        if "PUBLIC" in GRANTS[given]:
            sql(GRANTS[given])
            with pytest.raises(SealError, match="only that role can take it back"):
                harden_again(app)
        else:
            assert harden_again(app)


@on_postgresql
def test_to_read_is_anybodys(boss: str, roles: Roles) -> None:
    app, upkeep = roles("app"), roles("upkeep")
    with acting_as(boss):
        sql(f"GRANT SELECT ON {EVENTS} TO {quoted(app)}")
    assert harden(role=app, maintenance_role=upkeep, using="default")


@on_postgresql
def test_a_second_role_has_the_same_upkeep(roles: Roles) -> None:
    """The trigger knows one: with another the first role's rows from Redis lose their time."""
    first, upkeep, second = roles("app"), roles("up'keep ü"), roles("app")
    apply(harden(role=first, maintenance_role=upkeep, using="default"), "default")
    with pytest.raises(SealError, match="Give the same --maintenance-role") as caught:
        harden(role=second, maintenance_role=roles("upkeep"), using="default")
    assert repr(upkeep) in str(caught.value)
    apply(harden(role=second, maintenance_role=upkeep, using="default"), "default")
    assert harden(role=first, maintenance_role=upkeep, using="default")


@on_postgresql
@pytest.mark.parametrize("maker", ["app", "former"])
def test_a_role_that_made_the_function_loses_it(roles: Roles, maker: str) -> None:
    """To drop a function is to drop the trigger that calls it."""
    app, upkeep = roles("app"), roles("upkeep")
    owner = app if maker == "app" else roles(maker)
    sql(
        "CREATE FUNCTION tokenauth_audit_stamp() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN RETURN NEW; END'"
    )
    sql(f"ALTER FUNCTION tokenauth_audit_stamp() OWNER TO {quoted(owner)}")
    apply(harden(role=app, maintenance_role=upkeep, using="default"), "default")
    with acting_as(owner), pytest.raises(DatabaseError, match="must be owner"):
        sql("DROP FUNCTION tokenauth_audit_stamp() CASCADE")


@pytest.fixture
def owners() -> Iterator[None]:
    """Give back what tests give away."""
    [(schema,)] = sql("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'public'")
    user = quoted(connection.settings_dict["USER"])
    yield
    sql(f"ALTER DATABASE {connection.settings_dict['NAME']} OWNER TO {user}")
    sql(f"ALTER SCHEMA public OWNER TO {schema}")
    for table in (EVENTS, SEALS):
        sql(f"ALTER TABLE {table} OWNER TO {user}")


@on_postgresql
@pytest.mark.parametrize("power", POWERS)
def test_a_role_that_could_undo_it_is_refused(power: str, roles: Roles, owners: None) -> None:
    app, upkeep = roles("app"), roles("upkeep")
    give, reason = POWERS[power]
    assert harden(role=app, maintenance_role=upkeep, using="default")
    give(roles, app, upkeep)
    with pytest.raises(SealError, match=reason) as caught:
        harden(role=app, maintenance_role=upkeep, using="default")
    assert repr(app) in str(caught.value)
    if power != "member of upkeep":
        with pytest.raises(SealError, match=reason):
            harden(role=upkeep, maintenance_role=app, using="default")


@on_postgresql
def test_one_role_for_both_is_refused(roles: Roles) -> None:
    app = roles("app")
    with pytest.raises(SealError, match="Give two roles"):
        harden(role=app, maintenance_role=app, using="default")


@on_postgresql
@pytest.mark.parametrize("unknown", ["", "public", "none", "pg_x", "x" * 64, "é" * 32])
def test_a_role_that_cannot_be_is_refused(unknown: str, roles: Roles) -> None:
    app = roles("app")
    for first, second, option in ((unknown, app, "--role"), (app, unknown, "--maintenance-role")):
        with pytest.raises(CommandError, match="can't be created") as caught:
            call_command("tokenauth_audit", "harden", "--role", first, "--maintenance-role", second)
        assert repr(unknown) in str(caught.value)
        assert f"Give another {option}." in str(caught.value)


@on_postgresql
def test_a_role_too_long_to_be_continued_needs_a_second_name(roles: Roles) -> None:
    app = roles("x" * 40)
    with pytest.raises(CommandError, match=r"can.t be created\. Give another --maintenance-role"):
        call_command("tokenauth_audit", "harden", "--role", f"{app:x<60}")


@on_postgresql
@pytest.mark.parametrize("odd", ["", "PUBLIC", "a'b\"c%s", "$$é"])
def test_a_role_that_is_not_there_is_made(
    odd: str, roles: Roles, capsys: pytest.CaptureFixture[str]
) -> None:
    app = f"{roles('app')}-{odd}"
    roles.made.extend([app, f"{app}_audit"])
    call_command("tokenauth_audit", "harden", "--role", app)
    sql(capsys.readouterr().out)
    found = sql("SELECT rolname::text FROM pg_roles WHERE rolname IN (%s, %s)", app, f"{app}_audit")
    assert len(found) == 2
    assert not [line for line in harden_again(app) if line.startswith("CREATE ROLE")]


def harden_again(app: str) -> list[str]:
    return harden(role=app, maintenance_role=f"{app}_audit", using="default")


@on_postgresql
def test_what_the_server_refuses_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tokenauth.management.commands.tokenauth_audit.harden", lambda **_: ["SELECT 1/0;"]
    )
    with pytest.raises(CommandError, match=r"Nothing was changed.*division by zero"):
        call_command("tokenauth_audit", "harden", "--role", "a", "--apply")


@on_postgresql
@pytest.mark.parametrize("name", ["\udcff", "a\nb", "a\x00"])
def test_a_name_that_cannot_be_shown_is_refused(name: str, roles: Roles) -> None:
    for names in ((name, roles("upkeep")), (roles("app"), name)):
        with pytest.raises(SealError, match="can't be printed"):
            harden(role=names[0], maintenance_role=names[1], using="default")


@on_postgresql
@pytest.mark.parametrize("conforming", ["on", "off"])
def test_no_name_is_taken_for_sql(conforming: str, roles: Roles) -> None:
    """Nor where the server reads backslashes as it once did."""
    app = roles("app")
    upkeep = f"{app}\\'); CREATE TABLE tkt_pwned(); --"
    roles.made.append(upkeep)
    sql(f"SET standard_conforming_strings = {conforming}")
    try:
        apply(harden(role=app, maintenance_role=upkeep, using="default"), "default")
        assert sql("SELECT to_regclass('tkt_pwned')") == [(None,)]
        [(stamped,)] = sql("SELECT tgargs FROM pg_trigger WHERE tgname = 'tokenauth_audit_stamp'")
        assert bytes(stamped).decode() == f"{upkeep}\0"
    finally:
        sql("RESET standard_conforming_strings")


@pytest.mark.skipif(connection.vendor == "postgresql", reason="PostgreSQL can do it")
def test_other_databases_are_refused() -> None:
    with pytest.raises(CommandError, match="on PostgreSQL only"):
        call_command("tokenauth_audit", "harden", "--role", "a", "--maintenance-role", "b")


@on_postgresql
def test_a_name_that_the_server_cuts_is_refused(roles: Roles) -> None:
    """The trigger compares whole names; the server would have made it a role of a shorter one."""
    name = roles("x" * 60)
    with pytest.raises(SealError, match="can't be created"):
        harden(role=roles("app"), maintenance_role=name, using="default")
    cut = name[:63]
    assert harden(role=roles("app"), maintenance_role=cut, using="default")
