"""``manage.py tokenauth``: issue, import, list and stop tokens at the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import router
from django.db.models import Q
from django.utils import timezone

from tokenauth import services
from tokenauth.client_info import Actor
from tokenauth.conf import get_settings
from tokenauth.management.arguments import (
    UNNAMED,
    add_import_options,
    add_keyfile_options,
    make_grant_parser,
    make_selection_parser,
    read_public_id,
    read_rate,
)
from tokenauth.management.keyfiles import Grant, prepare_key_file
from tokenauth.management.options import (
    add_base_options,
    add_verbs,
    count_of,
    explaining_database_errors,
)
from tokenauth.management.sources import (
    Found,
    find_in_file,
    find_in_list,
    find_in_object,
    find_in_variable,
)
from tokenauth.models import Token, TokenQuerySet, TokenStatus
from tokenauth.services import Issued
from tokenauth.services.attempts import atomic
from tokenauth.services.keyfiles import is_in_work_tree
from tokenauth.tokens import redact

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

_OPTIONS = {
    "client_id": "--client",
    "scopes": "--scope",
    "expires_at": "--ttl",
    "allowed_networks": "--network",
}
"""What an input of the services is called here, where it isn't by its own name."""


class Command(BaseCommand):
    """The operator may do everything; each change leaves its row in the audit.

    Standard output carries only the result. All other messages go to standard error.
    """

    help = "Issue, import, list, show, rotate, revoke, enable and disable API tokens."

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
        why.add_argument("--reason", default="", metavar="TEXT", help="why; goes to the audit")
        grant = make_grant_parser()
        issue = add("issue", parents=[grant, common], help="issue a token and show it once")
        issue.add_argument(
            "--client", required=True, metavar="NAME", help="the client that owns it"
        )
        issue.add_argument("--name", default="", metavar="LABEL", help="a label")
        issue.add_argument("--rate", type=read_rate, metavar="600/m", help="its rate limit")
        issue.add_argument(
            "--network", action="append", default=[], metavar="CIDR", help="repeatable"
        )
        add_import_options(
            add("import", parents=[grant, common], help="accept another system's tokens")
        )
        add_keyfile_options(add("keyfile", parents=[grant], help="keep an API key in a file"))
        listing = add("list", parents=[common], help="list tokens")
        listing.add_argument("--client", metavar="NAME", help="only this client's")
        listing.add_argument("--status", choices=[*map(str, TokenStatus)], help="only these")
        add("show", parents=[common, one], help="show a token's data")
        add("rotate", parents=[common, one, why], help="issue a successor")
        add("revoke", parents=[common, many, why], help="refuse tokens permanently")
        add("enable", parents=[common, one, why], help="accept a token again")
        add("disable", parents=[common, many, why], help="refuse tokens until they are enabled")
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
        grant = _grant("", **options)
        found = _find_sources(client, grant["user"], options)
        with atomic():
            results = [_import_one(entry, grant) for entry in found]
        new = sum(is_new for _, is_new in results)
        if options["json"]:
            self._print_json([{**_describe(token), "created": is_new} for token, is_new in results])
        for entry, (token, is_new) in zip(found, results, strict=True):
            is_theirs = token.client_id == entry.client_id and grant["user"] in {None, token.user}
            if is_new:
                self._warn_of_owner(token)
            elif not (is_theirs and token.status is TokenStatus.ACTIVE):
                self.stderr.write(
                    f"{entry.place} is already stored as {token}, {token.status}; it was not changed."
                )
        out = self.stderr if options["json"] else self.stdout
        out.write(f"{new} imported, {len(results) - new} there already.")

    def _keyfile(self, *, path: str, client: str, **options: Any) -> None:
        key_file = prepare_key_file(path, _grant(client, **options))
        self.stdout.write(f"API key authentication ready (key file: {key_file.path})")
        self.stderr.write(f"{key_file.token}: {key_file.news}.")
        self._warn_of_owner(key_file.token)
        for token in key_file.revoked:
            self.stderr.write(f"{token}, the previous key, was revoked.")
        if is_in_work_tree(key_file.path):
            self.stderr.write(
                "Warning: the key file is inside a git work tree. See that it is never committed: "
                "move it out, or list it in .gitignore."
            )

    # The option's name is a built-in's, here and below.
    def _rotate(self, *, id: str, reason: str, **options: Any) -> None:  # noqa: A002
        issued = services.rotate(_find(id), reason=reason, by=Actor.from_command())
        self._print_issued(issued, as_json=options["json"])
        old = _find(id)
        self.stderr.write(
            f"The old token, {id}, is accepted until {old.ends_at:%Y-%m-%d %H:%M:%S %Z}."
        )

    def _operate(self, *, verb: str, id: str | None, reason: str, **options: Any) -> None:  # noqa: A002
        if id is None:
            self._operate_on_many(verb=verb, reason=reason, **options)
            return
        if any(options.get(name) is not None for name in ("client", "user", "unused_since")):
            raise CommandError("Give an id or a selection, not both.", returncode=2)
        token = _find(id)
        if options.get("dry_run"):
            is_due = token.revoked_at is None and (verb == "revoke" or token.enabled)
            outcome = f" would be {verb}d" if is_due else f": {token.status}"
            self.stderr.write(f"{token}{outcome}.")
            return
        token = getattr(services, verb)(token, reason=reason, by=Actor.from_command())
        if options["json"]:
            self._print_json(_describe(token))
        self.stderr.write(f"{token}: {token.status}.")

    def _operate_on_many(self, *, verb: str, reason: str, dry_run: bool, **options: Any) -> None:
        tokens = _select(**options)
        if dry_run:
            tokens = tokens.filter(revoked_at=None)
            tokens = tokens if verb == "revoke" else tokens.filter(enabled=True)
            count = tokens.count()
            if not options["json"]:
                self._print_table(tokens.iterator(chunk_size=1_000))
        else:
            operate = getattr(services, f"{verb}_many")
            count = operate(tokens, reason=reason, by=Actor.from_command())
        if options["json"]:
            self._print_json({"count": count})
        would = "would be " if dry_run else ""
        self.stderr.write(f"{count_of(count, 'token')} {would}{verb}d.")

    def _show(self, *, id: str, **options: Any) -> None:  # noqa: A002
        description = _describe(_find(id))
        if options["json"]:
            self._print_json(description)
            return
        for key, value in description.items():
            text = " ".join(value) if isinstance(value, list) else value or "-"
            self.stdout.write(f"{key}: {text}")

    def _list(self, *, client: str | None, status: str | None, **options: Any) -> None:
        tokens = _tokens()
        if client is not None:
            tokens = tokens.of_client(client).filter(client_id=client)
        if status is not None:
            tokens = tokens.with_status(TokenStatus(status), timezone.now())
        if options["json"]:
            self._print_json([_describe(token) for token in tokens.iterator(chunk_size=1_000)])
        else:
            self._print_table(tokens.iterator(chunk_size=1_000))

    def _print_table(self, tokens: Iterable[Token]) -> None:
        line = "{:<12}  {:<14}  {:<24}  {:<16}  {}"
        self.stdout.write(line.format("ID", "STATUS", "CLIENT", "EXPIRES", "SCOPES"))
        for token in tokens:
            ends = f"{token.ends_at:%Y-%m-%d %H:%M}" if token.ends_at else "never"
            cells = (token.public_id, token.status, token.client_id, ends, token.scopes)
            self.stdout.write(line.format(*cells).rstrip())

    def _print_issued(self, issued: Issued, *, as_json: bool) -> None:
        if as_json:
            self._print_json({"token": str(issued.plaintext), **_describe(issued.token)})
        else:
            self.stdout.write(str(issued.plaintext))
        self.stderr.write(f"Issued token {issued.token}. Save it now; it is not shown again.")
        self._warn_of_owner(issued.token)

    def _warn_of_owner(self, token: Token) -> None:
        if token.status is TokenStatus.OWNER_INACTIVE:
            self.stderr.write(
                "Warning: the token is refused until its user is active again: the account is "
                "inactive."
            )

    def _print_json(self, value: Any) -> None:
        self.stdout.write(json.dumps(value))


def _describe(token: Token) -> dict[str, Any]:
    return {
        "id": token.public_id,
        "client_id": token.client_id,
        "user": None if token.user is None else str(token.user.get_username()),
        "name": token.name,
        "scopes": list(token.scope_set),
        "not_before": _iso(token.not_before),
        "expires_at": _iso(token.ends_at),
        "allowed_networks": token.allowed_networks.split(),
        "rate": token.rate,
        "status": str(token.status),
        "created_at": _iso(token.created_at),
        "last_used_at": _iso(token.last_used_at),
        "replaced_by": token.replaced_by.public_id if token.replaced_by else None,
        "parent": token.parent.public_id if token.parent else None,
    }


def _iso(moment: Any) -> str | None:
    return None if moment is None else moment.isoformat()


def _grant(
    client: str, *, user: str | None, scope: list[str], ttl: timedelta | None, **_options: Any
) -> Grant:
    return {
        "client_id": client,
        "user": _find_user(user) if user is not None else None,
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
        return services.import_plaintext(entry.plaintext, **asked)
    except ValidationError as error:
        places = {**_OPTIONS, "plaintext": entry.place, "client_id": entry.client_place}
        raise CommandError(_explain(error, places)) from None


def _explain(error: ValidationError, places: Mapping[str, str] = _OPTIONS) -> str:
    if not hasattr(error, "error_dict"):
        return " ".join(error.messages)
    by_field = error.message_dict.items()
    return " ".join(f"{places.get(name, '--' + name)}: {' '.join(m)}" for name, m in by_field)


def _tokens() -> TokenQuerySet:
    """Return all tokens, from the database that they are written to."""
    return Token.objects.primary().select_related("user", "replaced_by", "parent")


def _select(
    *, client: str | None, user: str | None, unused_since: datetime | None, **_options: Any
) -> TokenQuerySet:
    """Return the tokens that fit all of the options given; raises CommandError without any."""
    tokens = _tokens()
    if client is None and user is None and unused_since is None:
        raise CommandError("Give an id, or --client, --user or --unused-since.", returncode=2)
    if client is not None:
        # Exactly this one: MariaDB's default collation ignores case.
        is_known = client in set(tokens.of_client(client).values_list("client_id", flat=True))
        tokens = tokens.of_client(client) if is_known else tokens.none()
    if user is not None:
        tokens = tokens.filter(user=_find_user(user))
    if unused_since is not None:
        if unused_since > timezone.now():
            raise CommandError("--unused-since is in the future.", returncode=2)
        never = Q(last_used_at=None, created_at__lt=unused_since)
        tokens = tokens.filter(never | Q(last_used_at__lt=unused_since))
        # Until its time has come, a token could not be used.
        tokens = tokens.exclude(not_before__gt=unused_since)
    return tokens


def _find(public_id: str) -> Token:
    token = _tokens().filter(public_id=public_id).first()
    if token is None:
        raise CommandError(f"There is no token with the id {public_id}.")
    return token


def _find_user(username: str) -> Any:
    users: Any = get_user_model()
    try:
        found = users._default_manager.db_manager(router.db_for_write(Token))
        return found.get_by_natural_key(username)
    except (users.DoesNotExist, ValueError):
        shown = redact(username, get_settings().prefix)
        raise CommandError(f"There is no user {shown!r}.") from None
