"""SQL for PostgreSQL roles that can't rewrite the audit."""

from __future__ import annotations

from typing import Any

from django.db import connections, transaction

from tokenauth.exceptions import SealError
from tokenauth.models import AuditDrained, AuditEvent, AuditPosition, AuditSeal, AuditSummary

_NAMEDATALEN = 64
_TABLES = {
    "events": AuditEvent._meta.db_table,
    "seals": AuditSeal._meta.db_table,
    "drained": AuditDrained._meta.db_table,
}
_STATISTICS = ", ".join(model._meta.db_table for model in (AuditSummary, AuditPosition))
"""Tables that are no evidence: pages catch up on them, so both roles may write."""

_STAMP = """\
CREATE OR REPLACE FUNCTION tokenauth_audit_stamp() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  NEW.xid := pg_current_xact_id()::text::bigint;
  IF current_user <> TG_ARGV[0] THEN
    NEW.at := clock_timestamp();
  END IF;
  RETURN NEW;
END $$;"""

# Raises an exception while a role can put a table of its own in front of the audit's in its search
# path, a temporary one included, or functions and operators in front of those that queries use.
_REFUSE_HIDING = """\
DO $$
DECLARE problem text;
BEGIN
  SELECT format('The role %I %s', other.rolname, deed) INTO problem
  FROM pg_roles self JOIN pg_roles other ON pg_has_role(self.oid, other.oid, 'MEMBER'), LATERAL (
    SELECT 'can create schemas or temporary tables in the database'
    WHERE has_database_privilege(other.oid, current_database(), 'CREATE, TEMPORARY')
    UNION ALL
    SELECT format('can create objects in the schema %I', nspname) FROM pg_namespace
    WHERE nspname !~ '^pg_' AND has_schema_privilege(other.oid, oid, 'CREATE')
    UNION ALL
    SELECT format('owns %s', pg_class.oid::regclass) FROM pg_class
    WHERE relname IN (:tables) AND relowner = other.oid
  ) AS deeds(deed)
  WHERE self.rolname::text IN (:roles) LIMIT 1;
  IF problem IS NOT NULL THEN
    RAISE EXCEPTION '%, and so could hide the audit from its connections. Revoke that as the owner'
      ' of the database or schema, then run this again.', problem;
  END IF;
END $$;"""

# The names are quoted as SQL needs them.
_TABLE = """
    SELECT relnamespace::regnamespace::text, quote_ident(current_database()),
        pg_get_serial_sequence(%(events)s, 'id'), relowner::regrole::text
    FROM pg_class WHERE oid = %(events)s::regclass
"""
_UPKEEP = """
    SELECT convert_from(btrim(tgargs, decode('00', 'hex')), getdatabaseencoding())
    FROM pg_trigger WHERE tgname = 'tokenauth_audit_stamp' AND tgrelid = %(events)s::regclass
"""

# NULL if there is no such role. Includes the powers of every role that the role can become by SET ROLE.
_POWERS = """
    SELECT
        bool_or(
            other.rolsuper OR other.rolcreaterole
            OR other.rolname IN ('pg_write_all_data', 'pg_write_server_files', 'pg_execute_server_program')
        ),
        bool_or(other.oid IN (relowner, nspowner, datdba)),
        bool_or(other.rolname = %(other)s),
        bool_or(other.rolname <> self.rolname AND EXISTS (
            SELECT FROM aclexplode(relacl)
            WHERE grantee = other.oid AND privilege_type NOT IN ('SELECT', 'INSERT')
            UNION ALL
            SELECT FROM pg_attribute, aclexplode(attacl)
            WHERE attrelid = pg_class.oid AND grantee = other.oid AND privilege_type <> 'SELECT'
            UNION ALL
            SELECT FROM pg_class seq, aclexplode(seq.relacl)
            WHERE seq.oid = pg_get_serial_sequence(%(events)s, 'id')::regclass AND grantee = other.oid
        )),
        count(*)
    FROM pg_roles self
    JOIN pg_roles other ON pg_has_role(self.oid, other.oid, 'MEMBER')
    JOIN pg_class ON pg_class.oid IN (
        %(events)s::regclass, %(seals)s::regclass, %(drained)s::regclass
    )
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    JOIN pg_database ON datname = current_database()
    WHERE self.rolname::text = %(role)s
"""

# Rights that the owner's REVOKE doesn't take back, because another role granted them to the role or
# to PUBLIC, which has the number 0.
_FOREIGN = """
    SELECT rolname::text
    FROM pg_roles JOIN (
        SELECT relowner, acl.* FROM pg_class, aclexplode(relacl) acl
        WHERE pg_class.oid IN (
            %(events)s::regclass, %(seals)s::regclass, %(drained)s::regclass,
            pg_get_serial_sequence(%(events)s, 'id')::regclass
        )
        UNION ALL
        SELECT relowner, acl.* FROM pg_class
        JOIN pg_attribute ON attrelid = pg_class.oid, aclexplode(attacl) acl
        WHERE pg_class.oid IN (
            %(events)s::regclass, %(seals)s::regclass, %(drained)s::regclass
        )
    ) AS granted ON grantor = oid AND grantor <> relowner
    WHERE privilege_type <> 'SELECT'
        AND grantee IN (0, (SELECT self.oid FROM pg_roles self WHERE self.rolname::text = %(role)s))
"""


def harden(*, role: str, maintenance_role: str, using: str) -> list[str]:
    """Return statements that let ``role`` add and read audit rows, and nothing else there.

    ``maintenance_role`` is for ``drain``, ``seal`` and ``prune``. Rows of all other roles get the
    server's time, and all rows get the number of their transaction, even if the INSERT has others.
    Missing roles are created, without a password. Run the statements as the owner of the tables and
    the database; they can be run again. Raises SealError on other databases, and if a role could
    undo them or can't be created.
    """
    known = _refuse_unfit(role, maintenance_role, using)
    events, seals, drained = _TABLES.values()
    app, upkeep = _name(role), _name(maintenance_role)
    # No role may choose a row's id or the next one: after a very high id no more rows fit. An
    # INSERT needs no right to the sequence.
    schema, database, sequence, owner = _ask(_TABLE, using)
    fields = AuditEvent._meta.concrete_fields
    columns = ", ".join(_name(field.column or "") for field in fields if not field.primary_key)
    return [
        *(f"CREATE ROLE {_name(name)} LOGIN;" for name, exists in known.items() if not exists),
        f"REVOKE CREATE, TEMPORARY ON DATABASE {database} FROM PUBLIC, {app}, {upkeep};",
        f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC, {app}, {upkeep};",
        f"GRANT USAGE ON SCHEMA {schema} TO {app}, {upkeep};",
        f"REVOKE ALL ON {events}, {seals}, {drained} FROM PUBLIC, {app}, {upkeep};",
        f"REVOKE ALL ON SEQUENCE {sequence} FROM PUBLIC, {app}, {upkeep};",
        f"GRANT SELECT, INSERT ({columns}) ON {events} TO {app};",
        f"GRANT SELECT ON {seals} TO {app};",
        f"GRANT SELECT, INSERT ({columns}), DELETE ON {events} TO {upkeep};",
        f"GRANT SELECT, INSERT, UPDATE (entries, request_entries) ON {seals} TO {upkeep};",
        f"GRANT SELECT, INSERT, DELETE ON {drained} TO {upkeep};",
        *_grant_statistics(app, upkeep),
        *_stamp_rows(events, owner, maintenance_role),
        _REFUSE_HIDING.replace(":roles", f"{_literal(role)}, {_literal(maintenance_role)}").replace(
            ":tables", ", ".join(f"'{table}'" for table in _TABLES.values())
        ),
    ]


def _stamp_rows(events: str, owner: str, maintenance_role: str) -> list[str]:
    return [
        _STAMP,
        # The owner of the function can drop it, and the trigger with it.
        f"ALTER FUNCTION tokenauth_audit_stamp() OWNER TO {owner};",
        # `drain` inserts rows with the time of their request.
        f"""\
CREATE OR REPLACE TRIGGER tokenauth_audit_stamp BEFORE INSERT ON {events}
FOR EACH ROW EXECUTE FUNCTION tokenauth_audit_stamp({_literal(maintenance_role)});""",
    ]


def _grant_statistics(app: str, upkeep: str) -> list[str]:
    return [
        f"REVOKE ALL ON {_STATISTICS} FROM PUBLIC, {app}, {upkeep};",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {_STATISTICS} TO {app}, {upkeep};",
    ]


def _refuse_unfit(role: str, maintenance_role: str, using: str) -> dict[str, bool]:
    """Raise SealError if the roles can't be hardened; return which of them exist."""
    if connections[using].vendor != "postgresql":
        raise SealError("Roles are hardened on PostgreSQL only.")
    if role == maintenance_role:
        raise SealError(
            f"{role!r} can't be both roles: it could undo the protection. Give two roles."
        )
    for name in (role, maintenance_role):
        if not name.isprintable():
            raise SealError(f"The role {name!r} has a name that can't be printed.")
    known = {
        role: _refuse_powerful(role, maintenance_role, "--role", using),
        maintenance_role: _refuse_powerful(maintenance_role, "", "--maintenance-role", using),
    }
    if (kept := _ask(_UPKEEP, using)) not in {None, (maintenance_role,)}:
        raise SealError(
            f"The audit has the maintenance role {kept[0]!r}, and only one role's rows keep their "
            "times. Give the same --maintenance-role. To replace the role, first run DROP TRIGGER "
            f"tokenauth_audit_stamp ON {_TABLES['events']}."
        )
    return known


def _ask(question: str, using: str, **names: str) -> Any:
    """Return the first row of an answer, or None."""
    with connections[using].cursor() as cursor:
        cursor.execute(question, {**_TABLES, **names})
        return cursor.fetchone()


def apply(statements: list[str], using: str) -> None:
    """Run the statements in one transaction; raises what the database raises."""
    with transaction.atomic(using=using), connections[using].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def _name(text: str) -> str:
    # Django's ``quote_name`` trusts what it is given.
    return '"' + text.replace('"', '""') + '"'


def _literal(text: str) -> str:
    # With the E for any standard_conforming_strings; without $ for use between $$.
    return "E'" + text.replace("\\", "\\\\").replace("'", "''").replace("$", "\\x24") + "'"


def _refuse_powerful(role: str, other: str, option: str, using: str) -> bool:
    """Raise SealError if ``role`` could still rewrite the audit, or become ``other``.

    ``option`` is the option that named it. Returns whether the role exists.
    """
    mighty, owner, becomes_other, granted, known = _ask(_POWERS, using, role=role, other=other)
    # The server cuts names at 63 bytes, but the trigger compares the whole name.
    fits = 0 < len(role.encode()) < _NAMEDATALEN
    if not known and (not fits or role in {"public", "none"} or role.startswith("pg_")):
        raise SealError(
            f"The role {role!r} doesn't exist and can't be created. Give another {option}."
        )
    problems = {
        "is or can become a superuser or a role with similar rights": mighty,
        "owns the audit's tables, their schema or the database (itself or as a member)": owner,
        f"is or can become {other!r}": becomes_other,
        "is a member of a role that was granted more than SELECT and INSERT on the audit, or "
        "anything on its columns or its sequence": granted,
    }
    if problem := next((text for text, holds in problems.items() if holds), ""):
        raise SealError(
            f"The role {role!r} {problem}, so it could undo the protection. Take that away, and "
            "let another role own the tables and run migrations."
        )
    if found := _ask(_FOREIGN, using, role=role):
        raise SealError(
            f"The role {found[0]!r} granted more than SELECT on the audit to {role!r} or to "
            "PUBLIC, and only that role can take it back. Let it REVOKE that, then run this again."
        )
    return bool(known)
