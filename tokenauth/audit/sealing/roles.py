"""PostgreSQL roles that can't rewrite the audit, as SQL."""

from __future__ import annotations

from django.db import connections, transaction

from tokenauth.exceptions import SealError
from tokenauth.models import AuditEvent, AuditSeal

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

# Questions about the table of events.
_SEQUENCE = "SELECT pg_get_serial_sequence(%s, 'id')"
_OWNER = """
    SELECT rolname FROM pg_roles JOIN pg_class ON relowner = pg_roles.oid
    WHERE pg_class.oid = %s::regclass
"""
_UPKEEP = """
    SELECT convert_from(btrim(tgargs, decode('00', 'hex')), getdatabaseencoding())
    FROM pg_trigger WHERE tgname = 'tokenauth_audit_stamp' AND tgrelid = %s::regclass
"""

# Whether the function is there and somebody else's than the table's owner's or the one's who asks,
# or one of the two roles', by itself or through another role.
_IS_FOREIGN_STAMP = """
    SELECT 1 FROM pg_proc JOIN pg_class ON pg_class.oid = %s::regclass
    WHERE pg_proc.oid = to_regprocedure('tokenauth_audit_stamp()') AND (
        proowner::regrole NOT IN (relowner::regrole, quote_ident(current_user)::regrole)
        OR EXISTS (
            SELECT FROM pg_roles
            WHERE rolname::text IN (%s, %s) AND pg_has_role(pg_roles.oid, proowner, 'MEMBER')
        )
    )
"""

LONGEST_ROLE = 63
"""Bytes of a role's name."""

# What a role can become counts as its own: SET ROLE is one statement away.
_POWERS = """
    SELECT
        coalesce(bool_or(
            other.rolsuper OR other.rolcreaterole
            OR other.rolname IN ('pg_write_all_data', 'pg_write_server_files', 'pg_execute_server_program')
        ), false),
        coalesce(bool_or(other.oid IN (relowner, nspowner, datdba)), false),
        coalesce(bool_or(other.rolname = %s), false),
        coalesce(bool_or(other.rolname <> self.rolname AND EXISTS (
            SELECT FROM aclexplode(relacl)
            WHERE grantee = other.oid AND privilege_type NOT IN ('SELECT', 'INSERT')
            UNION ALL
            SELECT FROM pg_attribute, aclexplode(attacl)
            WHERE attrelid = pg_class.oid AND grantee = other.oid AND privilege_type <> 'SELECT'
            UNION ALL
            SELECT FROM pg_class seq, aclexplode(seq.relacl)
            WHERE seq.oid = pg_get_serial_sequence(%s, 'id')::regclass AND grantee = other.oid
        )), false),
        count(*)
    FROM pg_roles self
    JOIN pg_roles other ON pg_has_role(self.oid, other.oid, 'MEMBER')
    JOIN pg_class ON pg_class.oid IN (%s::regclass, %s::regclass)
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    JOIN pg_database ON datname = current_database()
    WHERE self.rolname::text = %s
"""

# What the owner's REVOKE doesn't take back: rights that others passed on, to the role or to
# PUBLIC, which has the number 0.
_FOREIGN = """
    SELECT rolname::text
    FROM pg_roles JOIN (
        SELECT relowner, acl.* FROM pg_class, aclexplode(relacl) acl
        WHERE pg_class.oid IN (%s::regclass, %s::regclass, %s::regclass)
        UNION ALL
        SELECT relowner, acl.* FROM pg_class
        JOIN pg_attribute ON attrelid = pg_class.oid, aclexplode(attacl) acl
        WHERE pg_class.oid IN (%s::regclass, %s::regclass)
    ) AS granted ON grantor = oid AND grantor <> relowner
    WHERE privilege_type <> 'SELECT'
        AND grantee IN (0, (SELECT self.oid FROM pg_roles self WHERE self.rolname::text = %s))
"""


def harden(*, role: str, maintenance_role: str, using: str) -> list[str]:
    """Return statements that let ``role`` add and read audit rows, nothing else.

    ``maintenance_role`` is for ``drain``, ``seal`` and ``prune``. Whoever else inserts gets the
    server's time, and everybody the transaction's number, whatever they say. Roles that aren't
    there are created, without a password. To be run as the tables' owner; running them twice
    does no harm. Raises SealError on other databases, and where a role could undo them or can't
    be one.
    """
    known = _refuse_unfit(role, maintenance_role, using)
    events, seals = _name(AuditEvent._meta.db_table), _name(AuditSeal._meta.db_table)
    app, upkeep = _name(role), _name(maintenance_role)
    # Nobody chooses a row's id, nor the next one: a very high one would stand before all that
    # come. To insert takes no right to the sequence.
    sequence = _ask(_SEQUENCE, using)
    fields = AuditEvent._meta.concrete_fields
    columns = ", ".join(_name(field.column or "") for field in fields if not field.primary_key)
    # `drain` brings rows that have their time. Withholding INSERT on the column instead would
    # refuse the default too.
    trigger = f"tokenauth_audit_stamp({_literal(maintenance_role)})"
    return [
        *(f"CREATE ROLE {_name(name)} LOGIN;" for name, exists in known.items() if not exists),
        f"REVOKE ALL ON {events}, {seals} FROM PUBLIC, {app}, {upkeep};",
        f"REVOKE ALL ON SEQUENCE {sequence} FROM PUBLIC, {app}, {upkeep};",
        f"GRANT SELECT, INSERT ({columns}) ON {events} TO {app};",
        f"GRANT SELECT ON {seals} TO {app};",
        f"GRANT SELECT, INSERT ({columns}), DELETE ON {events} TO {upkeep};",
        f"GRANT SELECT, INSERT, UPDATE (entries) ON {seals} TO {upkeep};",
        _STAMP,
        *_take_function(role, maintenance_role, using),
        f"""\
CREATE OR REPLACE TRIGGER tokenauth_audit_stamp BEFORE INSERT ON {events}
FOR EACH ROW EXECUTE FUNCTION {trigger};""",
    ]


def _refuse_unfit(role: str, maintenance_role: str, using: str) -> dict[str, bool]:
    """Raise SealError where the roles can't be hardened; return which of them are there."""
    if connections[using].vendor != "postgresql":
        raise SealError("Roles are hardened on PostgreSQL only.")
    _refuse_names(role, maintenance_role)
    known = {
        role: _refuse_powerful(role, maintenance_role, "--role", using),
        maintenance_role: _refuse_powerful(maintenance_role, "", "--maintenance-role", using),
    }
    for name in known:
        _refuse_foreign_grants(name, using)
    _refuse_other_upkeep(maintenance_role, using)
    return known


def _refuse_names(role: str, maintenance_role: str) -> None:
    if role == maintenance_role:
        raise SealError(f"One role for both, {role!r}, could undo all this. Name two.")
    for name in (role, maintenance_role):
        if not name.isprintable():
            raise SealError(
                f"The role {name!r} has a name that can't be printed, so SQL can't show it."
            )


def _ask(question: str, using: str) -> str:
    """Return the answer to a question about the table of events; "" where there is none."""
    with connections[using].cursor() as cursor:
        cursor.execute(question, [AuditEvent._meta.db_table])
        found = cursor.fetchone()
    return str(found[0]) if found else ""


def _take_function(role: str, maintenance_role: str, using: str) -> list[str]:
    """Return what takes the trigger's function from whoever made it before.

    Whoever owns it can drop it, and the trigger with it.
    """
    with connections[using].cursor() as cursor:
        cursor.execute(_IS_FOREIGN_STAMP, [AuditEvent._meta.db_table, role, maintenance_role])
        is_foreign = cursor.fetchone() is not None
    owner = _name(_ask(_OWNER, using))
    return [f"ALTER FUNCTION tokenauth_audit_stamp() OWNER TO {owner};"] if is_foreign else []


def apply(statements: list[str], using: str) -> None:
    """Run the statements in one transaction; raises what the database raises."""
    with transaction.atomic(using=using), connections[using].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def _name(text: str) -> str:
    # Django's ``quote_name`` trusts what it is given.
    return '"' + text.replace('"', '""') + '"'


def _literal(text: str) -> str:
    # With the E, whatever standard_conforming_strings says of backslashes.
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _refuse_foreign_grants(role: str, using: str) -> None:
    """Raise SealError where somebody else than the owner gave ``role`` rights to the audit."""
    tables = [AuditEvent._meta.db_table, AuditSeal._meta.db_table]
    with connections[using].cursor() as cursor:
        cursor.execute(_FOREIGN, [*tables, _ask(_SEQUENCE, using), *tables, role])
        found = cursor.fetchone()
    if found:
        raise SealError(
            f"The role {found[0]!r} granted more than SELECT on the audit to {role!r} or to "
            "PUBLIC, and only who granted it can take it back: let that role REVOKE it, then run "
            "this again."
        )


def _refuse_other_upkeep(maintenance_role: str, using: str) -> None:
    """Raise SealError where the trigger keeps the times of another maintenance role."""
    known = _ask(_UPKEEP, using)
    if known not in {"", maintenance_role}:
        table = AuditEvent._meta.db_table
        raise SealError(
            f"The audit has the maintenance role {known!r}, and rows keep their times for one role "
            "only. Give the same --maintenance-role. For good, another one takes its place after "
            f"DROP TRIGGER tokenauth_audit_stamp ON {table}."
        )


def _refuse_powerful(role: str, other: str, option: str, using: str) -> bool:
    """Raise SealError where ``role`` could rewrite the audit, or become ``other``.

    ``option`` is how it was given. Returns whether there is such a role.
    """
    tables = [AuditEvent._meta.db_table, AuditSeal._meta.db_table]
    with connections[using].cursor() as cursor:
        cursor.execute(_POWERS, [other, tables[0], *tables, role])
        mighty, owner, becomes_other, granted, known = cursor.fetchone()
    if not known and not _can_be_made(role):
        raise SealError(
            f"There is no role {role!r}, and PostgreSQL wouldn't make one of that name. Give "
            f"another {option}."
        )
    problems = {
        "is or can become a superuser or a role that is near to one": mighty,
        "owns the audit's tables, their schema or the database (itself or as a member)": owner,
        f"is or can become {other!r}": becomes_other,
        "is a member of a role that was granted more than SELECT and INSERT on the audit, or "
        "anything on its columns or its sequence": granted,
    }
    if problem := next((text for text, holds in problems.items() if holds), ""):
        raise SealError(
            f"The role {role!r} {problem}: it could undo all this. Give it none of that; let "
            "another role own the tables and run migrations."
        )
    return bool(known)


def _can_be_made(role: str) -> bool:
    # The server cuts longer names, and the trigger compares whole ones.
    return (
        0 < len(role.encode()) <= LONGEST_ROLE
        and role not in {"public", "none"}
        and not role.startswith("pg_")
        and "\0" not in role
    )
