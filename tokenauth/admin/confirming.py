"""Operations on tokens in the admin: confirmed first, then run by ``services``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from tokenauth import policy, services
from tokenauth.admin.access import TokenAccess
from tokenauth.admin.figures import find_events
from tokenauth.admin.operations import OPERATIONS, Operation
from tokenauth.admin.pages import find_url, render, show_issued
from tokenauth.client_info import Actor
from tokenauth.exceptions import NotPermitted
from tokenauth.models import Token
from tokenauth.services.attempts import atomic
from tokenauth.services.stopping import find_descendants

_LISTED = 100
"""How many tokens a confirmation lists."""
_MOST_ANCESTORS = 1_000
"""The most selected tokens whose descendants the confirmation counts."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Tokens that were selected for an operation."""

    operation: Operation
    selected: list[int]
    """The keys of all selected tokens, in their order."""
    keys: list[int]
    """The keys of those that the operation changes, in their order."""
    action: str = ""
    """The name of the list's action; "" on the page of one token."""
    across: bool = False
    """Whether the selection is all that the list finds, on many pages."""
    back: str
    """The URL that leads back."""

    @property
    def tokens(self) -> QuerySet[Token]:
        """The tokens that the operation changes, however many the list finds by now."""
        return Token.objects.primary().with_keys(self.keys).order_by("pk")

    @property
    def fingerprint(self) -> str:
        """A text that is the same for the same tokens only."""
        return hashlib.sha256(",".join(map(str, self.keys)).encode()).hexdigest()

    def count_descendants(self) -> int | None:
        """Return how many tokens that these issued are stopped too; None if it isn't counted."""
        if not self.operation.stops_descendants:
            return 0
        if len(self.keys) > _MOST_ANCESTORS:
            return None
        heirs = find_descendants(self.keys) - set(self.keys)
        tokens = Token.objects.primary().with_keys(heirs)
        return tokens.filter(self.operation.effective).count() if heirs else 0


def make_action(name: str) -> Callable[..., HttpResponse]:
    """Return the action of the list for an operation."""
    operation = OPERATIONS[name]
    title = format_lazy(_("{operation} selected tokens"), operation=operation.title)

    @admin.action(description=title, permissions=[operation.permission])
    def act(site: Any, request: HttpRequest, tokens: QuerySet[Token]) -> HttpResponse:
        return site.confirm_selected(request, OPERATIONS[name], tokens, act.__name__)  # type: ignore[no-any-return]

    act.__name__ = f"{name}_selected"
    return act


class OperationPages(TokenAccess):
    """Adds a page for each operation on a token, and the actions of the list."""

    actions = [make_action(name) for name in OPERATIONS]

    def get_urls(self) -> Any:
        pages = [
            path(
                f"<path:object_id>/{name}/",
                self.admin_site.admin_view(partial(self.operation_view, operation=operation)),
                name=f"tokenauth_token_{name}",
            )
            for name, operation in OPERATIONS.items()
        ]
        return [*pages, *super().get_urls()]

    def may_run(
        self, request: HttpRequest, operation: Operation, token: Token | None = None
    ) -> bool:
        """Return whether the user may run ``operation`` on ``token``, or on any token if it is None."""
        return bool(getattr(self, f"has_{operation.permission}_permission")(request, token))

    def operation_view(
        self, request: HttpRequest, object_id: str, operation: Operation
    ) -> HttpResponse:
        token = self.find_changeable(request, object_id, operation.permission)
        if token is None:
            return self.redirect_to_index(request, object_id)
        back = self.keep_filters(request, find_url(self.admin_site, "change", token.pk))
        if not operation.changes(token):
            text: Any = _("%(token)s: it is %(status)s.")
            if operation.name == "rotate" and token.replaced_by_id is not None:
                text = _("%(token)s: it was rotated already.")
            names = {"token": token, "status": token.status.label}
            self.message_user(request, text % names, messages.WARNING)
            return HttpResponseRedirect(back)
        chosen = Selection(operation=operation, selected=[token.pk], keys=[token.pk], back=back)
        return self._confirm(request, chosen)

    def confirm_selected(
        self, request: HttpRequest, operation: Operation, tokens: QuerySet[Token], action: str
    ) -> HttpResponse:
        """Show the confirmation for the tokens selected in the list; run it when confirmed."""
        query = request.GET.urlencode()
        back = find_url(self.admin_site, "changelist") + (f"?{query}" if query else "")
        keys = tokens.order_by("pk").values_list("pk", flat=True)
        selected = list(keys[: operation.most + 1])
        problem = self._find_problem(request, operation, tokens, selected)
        if problem:
            self.message_user(request, problem, messages.WARNING)
            return HttpResponseRedirect(back)
        chosen = Selection(
            operation=operation,
            selected=selected,
            keys=self._find_effective(operation, selected),
            action=action,
            across=request.POST.get("select_across") == "1",
            back=back,
        )
        if not chosen.keys:
            text = _("This operation changes none of the selected tokens.")
            self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(back)
        return self._confirm(request, chosen)

    def _find_problem(
        self,
        request: HttpRequest,
        operation: Operation,
        tokens: QuerySet[Token],
        selected: list[int],
    ) -> str:
        """Return why the operation can't be run on the selected tokens; "" if it can."""
        if len(selected) > operation.most:
            text = _("You selected more than %(most)s tokens. Select fewer, or filter the list.")
            return text % {"most": f"{operation.most:,}"}
        own = policy.changeable(Actor.from_request(request), tokens).count()
        others = len(selected) - own
        if others <= 0:
            return ""
        problem = ngettext(
            "You may change only your own tokens: %d of the selected tokens is not yours.",
            "You may change only your own tokens: %d of the selected tokens are not yours.",
            others,
        )
        return problem % others

    def _find_effective(self, operation: Operation, selected: list[int]) -> list[int]:
        """Return those of the selected keys that the operation changes."""
        tokens = Token.objects.primary().with_keys(selected).filter(operation.effective)
        tokens = tokens.order_by("pk")
        if operation.run_many is not None:
            return list(tokens.values_list("pk", flat=True))
        return [token.pk for token in tokens.select_related("user") if operation.changes(token)]

    def _confirm(self, request: HttpRequest, chosen: Selection) -> HttpResponse:
        """Show the confirmation on the first call; run the operation when it is confirmed by POST."""
        confirmed = request.method == "POST" and "confirmed" in request.POST
        sent = request.POST.get("fingerprint", chosen.fingerprint)
        if confirmed and sent != chosen.fingerprint:
            confirmed = False
            text = _("The selection has changed. Check it and confirm again.")
            self.message_user(request, text, messages.WARNING)
        form = chosen.operation.form(request.POST if confirmed else None)
        if confirmed and form.is_valid():
            run = self._run_many if chosen.action and chosen.operation.run_many else self._run
            issued = run(request, chosen, form)
            if issued:
                filters = self.get_preserved_filters(request)
                return show_issued(self.admin_site, request, issued, filters)
            return HttpResponseRedirect(chosen.back)
        count = len(chosen.keys)
        context = {
            "title": chosen.operation.heading % count,
            "question": chosen.operation.question % count,
            "chosen": chosen,
            "tokens": chosen.tokens.select_related("user")[:_LISTED],
            "count": count,
            "more": max(0, count - _LISTED),
            "skipped": len(chosen.selected) - count,
            "descendants": chosen.count_descendants(),
            # A selection over many pages is sent as such: a form can't have so many fields.
            "sent_keys": chosen.selected[:1] if chosen.across else chosen.selected,
            "form": form,
            "preserved_filters": self.get_preserved_filters(request),
            "events_url": find_events(self.admin_site, request),
        }
        return render(self.admin_site, request, "confirm", context)

    def _run(self, request: HttpRequest, chosen: Selection, form: Any) -> list[services.Issued]:
        """Run the operation on each token and show the outcome; return the issued tokens.

        In one transaction: otherwise, if the third of five tokens raised an unexpected error, the
        texts of the first two would be lost.
        """
        operation, options = chosen.operation, form.get_options()
        actor, done, issued = Actor.from_request(request), 0, []
        with atomic():
            for token in chosen.tokens:
                try:
                    result = operation.run(token, by=actor, **options)
                except (ValidationError, NotPermitted) as refusal:
                    self.message_user(request, f"{token}: {explain(refusal)}", messages.ERROR)
                    continue
                done += 1
                self.log_change(request, token, _log_line(operation, options["reason"]))
                if isinstance(result, services.Issued):
                    issued.append(result)
        if done:
            self.message_user(request, operation.done % done, messages.SUCCESS)
        return issued

    def _run_many(
        self, request: HttpRequest, chosen: Selection, form: Any
    ) -> list[services.Issued]:
        """Run the operation on all tokens or on none, and show the outcome; issue nothing."""
        operation, options = chosen.operation, form.get_options()
        run: Any = operation.run_many
        try:
            count = run(chosen.tokens, by=Actor.from_request(request), **options)
        except NotPermitted as refusal:
            self.message_user(request, explain(refusal), messages.ERROR)
            return []
        level = messages.SUCCESS if count else messages.WARNING
        self.message_user(request, operation.done % count, level)
        if count:
            # One entry for the operation, because the audit has a row for each token.
            LogEntry.objects.create(
                user_id=request.user.pk or 0,
                content_type=ContentType.objects.get_for_model(Token),
                object_repr=ngettext("%d token", "%d tokens", count) % count,
                action_flag=CHANGE,
                change_message=_log_line(operation, options["reason"]),
            )
        return []


def explain(refusal: ValidationError | NotPermitted) -> str:
    """Return what a refusal by ``services`` says, in one line."""
    texts = getattr(refusal, "messages", None) or [str(refusal)]
    return " ".join(texts)


def _log_line(operation: Operation, reason: str) -> str:
    return f"{operation.name}: {reason}" if reason else operation.name
