"""``manage.py tokenauth``: issue, import, list, change and stop tokens at the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import router
from django.utils import timezone

from tokenauth import services
from tokenauth.client_info import Actor
from tokenauth.conf import get_settings
from tokenauth.management import incidents, notices, scope_use
from tokenauth.management.arguments import (
    EXAMPLES,
    SELECTIONS,
    UNNAMED,
    add_change_options,
    add_import_options,
    add_incident_options,
    add_issue_options,
    add_keyfile_options,
    add_list_options,
    add_notify_options,
    make_grant_parser,
    make_selection_parser,
    read_changes,
    read_public_id,
)
from tokenauth.management.describing import table
from tokenauth.management.keyfiles import Grant, prepare_key_file
from tokenauth.management.options import (
    add_base_options,
    add_examples,
    add_verbs,
    count_of,
    explaining_database_errors,
    read_duration,
)
from tokenauth.management.selection import find_token, find_user, in_parts, select
from tokenauth.management.sources import (
    Found,
    find_in_file,
    find_in_list,
    find_in_object,
    find_in_variable,
)
from tokenauth.management.takeovers import (
    check_no_source_digest,
    find_sources,
    import_all,
    make_report,
)
from tokenauth.models import Token, TokenStatus, public_fields, to_text
from tokenauth.services import Issued
from tokenauth.services.attempts import atomic
from tokenauth.services.keyfiles import is_in_work_tree

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

_OPTIONS = {
    "client_id": "--client",
    "scopes": "--scope",
    "expires_at": "--ttl",
    "allowed_networks": "--network",
    "not_before": "--not-before",
}
"""The option for an input of the services, where it has another name."""


class Command(BaseCommand):
    """Policy doesn't restrict the operator. Each change has a row in the audit.

    Standard output carries only the result. All other messages go to standard error.
    """

    help = "Issue, import, list, show, change, rotate, and stop API tokens."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the verbs and their options."""
        verbs = add_verbs(parser)
        add = verbs.add_parser
        common = CommandParser(add_help=False)
        common.add_argument("--json", action="store_true", help="print JSON")
        one = CommandParser(add_help=False)
        one.add_argument("id", type=read_public_id, help="the token's public id")
        many = make_selection_parser()
        why = CommandParser(add_help=False)
        why.add_argument("--reason", default="", metavar="TEXT", help="the reason for the audit")
        grant = make_grant_parser()
        issuing = [grant, common]
        add_issue_options(add("issue", parents=issuing, help="issue a token and show it once"))
        add_import_options(
            add("import", parents=[grant, common], help="accept another system's tokens")
        )
        add_keyfile_options(add("keyfile", parents=[grant], help="keep an API key in a file"))
        add_list_options(add("list", parents=[common], help="list tokens"))
        add("show", parents=[common, one], help="show a token's data")
        add_change_options(add("change", parents=[common, one], help="change a token"))
        rotating = add("rotate", parents=[common, one, why], help="issue a successor")
        rotating.add_argument(
            "--grace",
            type=read_duration,
            metavar="1h",
            help="how long the old token still works; at most ROTATION_GRACE, which is the default",
        )
        add("revoke", parents=[common, many, why], help="refuse tokens permanently")
        add("enable", parents=[common, one, why], help="accept a token again")
        add("disable", parents=[common, many, why], help="refuse tokens until they are enabled")
        add_incident_options(add("incident", parents=[common], help="stop a token that has leaked"))
        add_notify_options(add("notify", parents=[common], help="mail owners before tokens end"))
        add_examples(verbs, EXAMPLES)
        add_base_options(parser, verbs)

    def handle(self, *_args: Any, verb: str, **options: Any) -> None:
        """Do what the verb says; raises CommandError with a message for people."""
        handle: Callable[..., None] = getattr(self, f"_{verb}", self._operate)
        try:
            with explaining_database_errors(router.db_for_write(Token)):
                handle(verb=verb, **options)
        except ValidationError as error:
            raise CommandError(_explain(error)) from None
        except UnicodeEncodeError:
            raise CommandError("The input isn't valid UTF-8.") from None

    def _issue(self, *, client: str, **options: Any) -> None:
        issued = services.issue(
            **_grant(client, **options),
            name=options["name"],
            allowed_networks=options["network"],
            rate=options["rate"] or "",
        )
        self._print_issued(issued, as_json=options["json"])

    def _import(self, *, client: str | None, **options: Any) -> None:
        if options["package"] is not None:
            self._import_package(client, **options)
            return
        if options["status"]:
            raise CommandError("--status needs --from.", returncode=2)
        grant = _grant("", **options)
        found = _find_sources(client, grant["user"], options)
        with atomic():
            results = [_import_one(entry, grant) for entry in found]
        new = sum(is_new for _, is_new in results)
        if options["json"]:
            self._print_json(
                [{**public_fields(token), "created": is_new} for token, is_new in results]
            )
        for entry, (token, is_new) in zip(found, results, strict=True):
            is_theirs = token.client_id == entry.client_id and grant["user"] in {None, token.user}
            if is_new:
                self._warn_of_owner(token)
            elif not (is_theirs and token.status is TokenStatus.ACTIVE):
                self.stderr.write(
                    f"{entry.place} is already stored as {token}, {token.status}; it was not changed."
                )
        out = self.stderr if options["json"] else self.stdout
        out.write(f"{new} imported, {len(results) - new} already stored.")

    def _import_package(
        self, client: str | None, *, package: str, status: bool, **options: Any
    ) -> None:
        if client or options["user"] or options["scope"] or options["ttl"]:
            raise CommandError(
                "--from keeps owners and ends, and grants IMPORTED_SCOPES: leave --client, --user, "
                "--scope and --ttl out.",
                returncode=2,
            )
        sources = find_sources(package)
        if not status:
            results = [(source.source, *import_all(source)) for source in sources]
            for name, new, known in results:
                out = self.stderr if options["json"] else self.stdout
                out.write(f"{name}: {new} imported, {known} already stored.")
        reports = [make_report(source) for source in sources]
        if options["json"]:
            self._print_json([report.as_json() for report in reports])
        for report in reports:
            out = self.stdout if status and not options["json"] else self.stderr
            for line in report.lines(status=status):
                out.write(line)

    def _keyfile(self, *, path: str, client: str, **options: Any) -> None:
        key_file = prepare_key_file(path, _grant(client, **options))
        self.stdout.write(f"API key authentication ready (key file: {key_file.path})")
        self.stderr.write(f"{key_file.token}: {key_file.news}.")
        self._warn_of_owner(key_file.token)
        for token in key_file.revoked:
            self.stderr.write(f"{token}, the previous key, was revoked.")
        if is_in_work_tree(key_file.path):
            self.stderr.write(
                "Warning: the key file is inside a git work tree. Move it out, or list it in "
                ".gitignore, so that it is never committed."
            )

    # The option's name is a built-in's, here and below.
    def _change(self, *, id: str, **options: Any) -> None:  # noqa: A002
        before, changes = find_token(id), read_changes(options)
        if not changes:
            raise CommandError("Give at least one option that says what to change.", returncode=2)
        try:
            token = services.change(before, by=Actor.from_command(), **changes)
        except ValidationError as error:
            ends = "--expires" if options["ttl"] is None else "--ttl"
            raise CommandError(_explain(error, {**_OPTIONS, "expires_at": ends})) from None
        if options["json"]:
            self._print_json(public_fields(token))
        outcome = (
            "nothing has changed" if public_fields(token) == public_fields(before) else "changed"
        )
        self.stderr.write(f"{token}: {outcome}.")

    def _rotate(
        self,
        *,
        id: str,  # noqa: A002
        reason: str,
        grace: timedelta | None,
        **options: Any,
    ) -> None:
        by = Actor.from_command()
        issued = services.rotate(find_token(id), reason=reason, grace=grace, by=by)
        self._print_issued(issued, as_json=options["json"])
        until = to_text(find_token(id).ends_at)
        self.stderr.write(f"The old token, {id}, is accepted until {until}.")

    def _operate(self, *, verb: str, id: str | None, reason: str, **options: Any) -> None:  # noqa: A002
        if id is None:
            self._operate_on_many(verb=verb, reason=reason, **options)
            return
        if any(options.get(name) is not None for name in SELECTIONS):
            raise CommandError("Give an id or a selection, not both.", returncode=2)
        token = find_token(id)
        if options.get("dry_run"):
            is_due = token.revoked_at is None and (verb == "revoke" or token.enabled)
            outcome = f" would be {verb}d" if is_due else f": {token.status}"
            self.stderr.write(f"{token}{outcome}.")
            return
        token = getattr(services, verb)(token, reason=reason, by=Actor.from_command())
        if options["json"]:
            self._print_json(public_fields(token))
        self.stderr.write(f"{token}: {token.status}.")

    def _operate_on_many(self, *, verb: str, reason: str, dry_run: bool, **options: Any) -> None:
        if all(options[name] is None for name in SELECTIONS):
            raise CommandError("Give an id, or --client, --user or --unused-since.", returncode=2)
        tokens = select(**options)
        if dry_run:
            tokens = tokens.filter(revoked_at=None)
            tokens = tokens if verb == "revoke" else tokens.filter(enabled=True)
            count = tokens.count()
            if not options["json"]:
                self._print_table(in_parts(tokens))
        else:
            operate = getattr(services, f"{verb}_many")
            count = operate(tokens, reason=reason, by=Actor.from_command())
        if options["json"]:
            self._print_json({"count": count})
        would = "would be " if dry_run else ""
        self.stderr.write(f"{count_of(count, 'token')} {would}{verb}d.")

    def _incident(self, *, id: str, dry_run: bool, **options: Any) -> None:  # noqa: A002
        incident = incidents.find(id).stop(dry_run=dry_run)
        if options["json"]:
            self._print_json(incident.as_json())
        else:
            for line in incident.lines():
                self.stdout.write(line)
        for line in incident.news():
            self.stderr.write(line)

    def _notify(self, *, within: timedelta, dry_run: bool, **options: Any) -> None:
        if dry_run:
            tokens = [notice.token for notice in notices.find_due(within)]
            if not options["json"]:
                self._print_table(tokens)
            outcome = {"due": len(tokens)}
        else:
            outcome = asdict(notices.send_due(within))
        if options["json"]:
            self._print_json(outcome)
        said = [f"{count_of(count, 'notice')} {name}" for name, count in outcome.items()]
        self.stderr.write(f"{', '.join(said)}.")
        if outcome.get("failed"):
            raise CommandError("The log says why. The next run tries again.")

    def _show(self, *, id: str, **options: Any) -> None:  # noqa: A002
        description = public_fields(find_token(id))
        if options["json"]:
            self._print_json(description)
            return
        for key, value in description.items():
            text = " ".join(value) if isinstance(value, list) else value or "-"
            self.stdout.write(f"{key}: {text}")

    def _list(self, **options: Any) -> None:
        tokens = in_parts(select(**options))
        if options["scope_use"] is not None:
            self._print_scope_use(tokens, options["scope_use"], as_json=options["json"])
        elif options["json"]:
            for token in tokens:
                self._print_json(public_fields(token))
        else:
            self._print_table(tokens)

    def _print_scope_use(
        self, tokens: Iterable[Token], period: timedelta, *, as_json: bool
    ) -> None:
        if not get_settings().audit_successes:
            self.stderr.write("Warning: AUDIT_SUCCESSES is off, so accepted calls are not known.")
        since = timezone.now() - period
        if as_json:
            uses = scope_use.ScopeUses(since)
            for token in tokens:
                self._print_json({**public_fields(token), "scope_use": asdict(uses.of(token))})
            return
        for line in scope_use.table(tokens, since):
            self.stdout.write(line)

    def _print_table(self, tokens: Iterable[Token]) -> None:
        for line in table(tokens):
            self.stdout.write(line)

    def _print_issued(self, issued: Issued, *, as_json: bool) -> None:
        if as_json:
            self._print_json({"token": str(issued.plaintext), **public_fields(issued.token)})
        else:
            self.stdout.write(str(issued.plaintext))
        self.stderr.write(f"Issued token {issued.token}. Save it now; it is not shown again.")
        self._warn_of_owner(issued.token)

    def _warn_of_owner(self, token: Token) -> None:
        if token.status is TokenStatus.OWNER_INACTIVE:
            self.stderr.write("Warning: the token is refused while its user is inactive.")

    def _print_json(self, value: Any) -> None:
        self.stdout.write(json.dumps(value))


def _grant(
    client: str, *, user: str | None, scope: list[str], ttl: timedelta | None, **_options: Any
) -> Grant:
    return {
        "client_id": client,
        "user": find_user(user) if user is not None else None,
        "scopes": scope,
        "expires_at": timezone.now() + ttl if ttl is not None else None,
        "by": Actor.from_command(),
    }


def _find_sources(
    client: str | None, user: AbstractBaseUser | None, options: dict[str, Any]
) -> list[Found]:
    if options["json_env"] is not None:
        if client is not None:
            raise CommandError("--json-env names the clients: leave --client out.", returncode=2)
        return find_in_object(options["json_env"])
    # A user's tokens go by the user's name.
    owner = client if client is not None else user.get_username() if user else UNNAMED
    if options["env"] is not None:
        return find_in_variable(options["env"], owner)
    if options["csv_env"] is not None:
        return find_in_list(options["csv_env"], owner)
    return find_in_file(options["file"], owner)


def _import_one(entry: Found, grant: Grant) -> tuple[Token, bool]:
    asked: Grant = {**grant, "client_id": entry.client_id}
    try:
        check_no_source_digest(entry.plaintext)
        return services.import_plaintext(entry.plaintext, **asked)
    except ValidationError as error:
        places = {**_OPTIONS, "plaintext": entry.place, "client_id": entry.client_place}
        raise CommandError(_explain(error, places)) from None


def _explain(error: ValidationError, places: Mapping[str, str] = _OPTIONS) -> str:
    if not hasattr(error, "error_dict"):
        return " ".join(error.messages)
    by_field = error.message_dict.items()
    return " ".join(f"{places.get(name, '--' + name)}: {' '.join(m)}" for name, m in by_field)
