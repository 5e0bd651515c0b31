"""Tokens in the admin: issue, change, rotate, disable, enable and revoke them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth import get_user_model
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import IntegrityError, router
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import get_script_prefix, path, reverse
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from tokenauth import policy, services
from tokenauth.admin.lists import LongListAdmin, ScopeFilter, StatusFilter
from tokenauth.admin.operations import OFFERED, OPERATIONS, Operation
from tokenauth.client_info import Actor
from tokenauth.conf import get_settings
from tokenauth.exceptions import NotPermitted
from tokenauth.forms import ChangeForm, ConfirmForm, IssueForm
from tokenauth.guards import guarded_views
from tokenauth.models import AuditEvent, Token
from tokenauth.responses import keep_to_itself
from tokenauth.services import Changes
from tokenauth.services.attempts import atomic

_users: Any = get_user_model()
_LISTED = 100
_OWNER = ["public_id", "state", "client_id", "user"]
_CHANGEABLE = list(Changes.__annotations__)
_HISTORY = [
    *("created_at", "created_by", "last_used_at", "last_used_ip", "revoked_at", "revoked_by"),
    *("revoked_reason", "disabled_by", "replaced_by", "parent"),
]


def _make_action(name: str) -> Callable[..., HttpResponse]:
    operation = OPERATIONS[name]

    title = format_lazy(_("{operation} selected tokens"), operation=operation.title)

    @admin.action(description=title, permissions=[operation.permission])
    def act(site: TokenAdmin, request: HttpRequest, tokens: QuerySet[Token]) -> HttpResponse:
        back = site._url("changelist")
        return site._confirm(request, OPERATIONS[name], tokens, back, act.__name__)

    act.__name__ = f"{name}_selected"
    return act


@admin.register(Token)
class TokenAdmin(LongListAdmin):
    """Tokens. All writes go through ``services``; a token's text is shown once and kept nowhere."""

    class Media:
        css: ClassVar = {"all": ["tokenauth/token.css"]}

    form = ChangeForm
    list_display = [
        *("public_id", "state", "client_id", "user", "scopes", "ends", "last_used_at", "name")
    ]
    list_filter = [
        StatusFilter,
        ScopeFilter,
        ("expires_at", admin.DateFieldListFilter),
        ("last_used_at", admin.EmptyFieldListFilter),
    ]
    raw_id_fields = ["user"]
    search_fields = ["public_id__exact", "client_id", "name", f"user__{_users.USERNAME_FIELD}"]
    actions = [_make_action(name) for name in OPERATIONS]
    change_form_template = "admin/tokenauth/token/change_form.html"
    readonly_fields = [*_OWNER, *_HISTORY]
    fieldsets = [
        (None, {"fields": [*_OWNER]}),
        (_("Can be changed"), {"fields": [*_CHANGEABLE]}),
        (_("History"), {"fields": [*_HISTORY]}),
    ]

    def get_queryset(self, request: HttpRequest) -> Any:
        """Read from the database that tokens are written to, because a replica may be behind."""
        return Token.objects.primary().select_related("user", "replaced_by", "parent")

    def formfield_for_foreignkey(
        self, db_field: Any, request: HttpRequest, **kwargs: Any
    ) -> forms.ModelChoiceField[Any] | None:
        """Look the chosen user up where tokens are written."""
        using = router.db_for_write(Token)
        return super().formfield_for_foreignkey(db_field, request, **{**kwargs, "using": using})

    @admin.display(description=_("status"))
    def state(self, token: Token) -> Any:
        return token.status.label

    @admin.display(description=_("expires"), ordering="expires_at")
    def ends(self, token: Token) -> Any:
        return token.ends_at

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Tokens are revoked, not deleted, except along with their user."""
        page = request.resolver_match.url_name if request.resolver_match else None
        if (page or "").startswith("tokenauth_token_"):
            return False
        return super().has_delete_permission(request, obj)

    def get_form(self, request: HttpRequest, obj: Any = None, *args: Any, **kwargs: Any) -> Any:
        if obj is None:
            kwargs["form"] = IssueForm
        form = super().get_form(request, obj, *args, **kwargs)
        return type(form.__name__, (form,), {"actor": Actor.from_request(request)})

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is not None:
            return super().get_fieldsets(request, obj)
        owner = ["user"] if policy.may_issue_for_others(Actor.from_request(request)) else []
        return [(None, {"fields": [*owner, "client_id", *_CHANGEABLE, "ticket"]})]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return [] if obj is None else super().get_readonly_fields(request, obj)

    def changeform_view(
        self, request: HttpRequest, object_id: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Show or take a form. One sent twice at the same moment issues once."""
        try:
            return super().changeform_view(request, object_id, *args, **kwargs)
        except IntegrityError:
            if object_id is not None:
                raise
            refusal = str(_("This form was sent already."))
        except (ValidationError, NotPermitted) as error:
            # The token was changed after the form was checked.
            refusal = _explain(error)
        self.message_user(request, refusal, messages.ERROR)
        return HttpResponseRedirect(self._url("changelist"))

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Add the buttons that fit the token's status, and no others than "Save"."""
        token = context.get("original")
        context["show_save_and_add_another"] = context["show_save_and_continue"] = False
        if token is not None:
            offered = [OPERATIONS[name] for name in OFFERED[token.status]]
            context["operations"] = [
                operation for operation in offered if self._may(request, operation, token)
            ]
            audit = self.admin_site._registry.get(AuditEvent)
            if audit is not None and audit.has_view_permission(request):
                events = self._url("changelist", model="auditevent")
                context["audit_url"] = f"{events}?token_id__exact={token.public_id}"
        return super().render_change_form(request, context, *args, **kwargs)

    def save_model(self, request: Any, obj: Token, form: Any, change: bool) -> None:
        if change:
            services.change(obj, by=form.actor, **form.get_changes())
            return
        issued = services.issue(
            client_id=form.cleaned_data["client_id"],
            user=form.get_user(),
            public_id=form.cleaned_data["ticket"],
            by=form.actor,
            **form.get_changes(),
        )
        vars(obj).update(vars(issued.token))
        request.tokenauth_issued = [issued]

    def response_add(self, request: Any, obj: Token, post_url_continue: Any = None) -> HttpResponse:
        """Answer the form with the new token's text: no redirect, so it needs to be kept nowhere."""
        return self._show_issued(request, request.tokenauth_issued)

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

    def operation_view(
        self, request: HttpRequest, object_id: str, operation: Operation
    ) -> HttpResponse:
        token = self.get_object(request, object_id)
        if token is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined,no-any-return]
        if not self._may(request, operation, token):
            raise PermissionDenied
        tokens = self.get_queryset(request).filter(pk=token.pk)
        return self._confirm(request, operation, tokens, self._url("change", token.pk))

    def has_rotate_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Rotating changes a token and adds one."""
        return self.has_change_permission(request, obj) and self.has_add_permission(request)

    def _may(self, request: HttpRequest, operation: Operation, token: Token) -> bool:
        return bool(getattr(self, f"has_{operation.permission}_permission")(request, token))

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Refuse to filter by digests, which could be guessed bit by bit."""
        if lookup.startswith(("digest", "pepper_id")):
            return False
        return super().lookup_allowed(lookup, value, request)  # type: ignore[arg-type]

    def _url(self, page: str, *args: Any, model: str = "token") -> str:
        name = f"admin:tokenauth_{model}_{page}"
        return reverse(name, args=args, current_app=self.admin_site.name)

    def _confirm(
        self,
        request: HttpRequest,
        operation: Operation,
        tokens: QuerySet[Token],
        back: str,
        action: str = "",
    ) -> HttpResponse:
        """Ask on the first call, do it once it is confirmed by POST."""
        count = tokens.count()
        confirmed = request.method == "POST" and "confirmed" in request.POST
        if confirmed and action and request.POST.get("count", str(count)) != str(count):
            confirmed = False
            text = _("The selection has changed meanwhile. Look again.")
            self.message_user(request, text, messages.WARNING)
        form = ConfirmForm(request.POST if confirmed else None)
        if confirmed and form.is_valid():
            reason = form.cleaned_data["reason"]
            run = self._run_many if action and operation.run_many else self._run
            issued = run(request, operation, tokens, reason)
            return self._show_issued(request, issued) if issued else HttpResponseRedirect(back)
        across = request.POST.get("select_across") == "1"
        keys = tokens.order_by("pk").values_list("pk", flat=True)
        context = {
            "title": operation.title,
            "operation": operation,
            "tokens": tokens.order_by("pk")[:_LISTED],
            "count": count,
            "more": max(0, count - _LISTED),
            # A selection over many pages is sent as such: a form can't have so many fields.
            "across": across,
            "selected": keys[:1] if across else keys,
            "form": form,
            "action": action,
            "back": back,
        }
        return self._render(request, "confirm", context)

    def _run(
        self, request: HttpRequest, operation: Operation, tokens: QuerySet[Token], reason: str
    ) -> list[services.Issued]:
        """Do it to each token and say how it went; return what was issued.

        One transaction: if the third of five failed for an unforeseen reason, the texts of the
        first two would be lost.
        """
        actor, done, issued = Actor.from_request(request), 0, []
        with atomic():
            for token in tokens.order_by("pk"):
                if operation.name not in OFFERED[token.status]:
                    text = _("%(token)s: it is %(status)s.")
                    names = {"token": token, "status": token.status.label}
                    self.message_user(request, text % names, messages.WARNING)
                    continue
                try:
                    result = operation.run(token, reason=reason, by=actor)
                except (ValidationError, NotPermitted) as refusal:
                    self.message_user(request, f"{token}: {_explain(refusal)}", messages.ERROR)
                    continue
                done += 1
                self.log_change(request, token, _log_line(operation, reason))
                if isinstance(result, services.Issued):
                    issued.append(result)
        if done:
            self.message_user(request, operation.done(done) % done, messages.SUCCESS)
        return issued

    def _run_many(
        self, request: HttpRequest, operation: Operation, tokens: QuerySet[Token], reason: str
    ) -> list[services.Issued]:
        """Do it to all tokens or to none, and say how it went; nothing is issued."""
        run: Any = operation.run_many
        try:
            count = run(tokens, reason=reason, by=Actor.from_request(request))
        except NotPermitted as refusal:
            self.message_user(request, _explain(refusal), messages.ERROR)
            return []
        level = messages.SUCCESS if count else messages.WARNING
        self.message_user(request, operation.done(count) % count, level)
        if count:
            # One entry for all: the audit has a row for each of them.
            LogEntry.objects.create(
                user_id=request.user.pk or 0,
                content_type=ContentType.objects.get_for_model(Token),
                object_repr=ngettext("%d token", "%d tokens", count) % count,
                action_flag=CHANGE,
                change_message=_log_line(operation, reason),
            )
        return []

    def _render(self, request: Any, name: str, context: dict[str, Any]) -> TemplateResponse:
        request.current_app = self.admin_site.name
        context = {**self.admin_site.each_context(request), "opts": self.opts, **context}
        return TemplateResponse(request, f"admin/tokenauth/token/{name}.html", context)

    def _show_issued(self, request: HttpRequest, issued: list[services.Issued]) -> HttpResponse:
        transport = get_settings().transports[0]
        header = f"{transport.header}: " + (f"{transport.scheme} " if transport.scheme else "")
        context = {
            "title": _("New token"),
            "issued": issued,
            "header": header,
            "url": request.build_absolute_uri(_example_path()),
        }
        response = self._render(request, "issued", context)
        keep_to_itself(response)
        return response


def _log_line(operation: Operation, reason: str) -> str:
    return f"{operation.name}: {reason}" if reason else operation.name


def _explain(refusal: ValidationError | NotPermitted) -> str:
    texts = getattr(refusal, "messages", None) or [str(refusal)]
    return " ".join(texts)


def _example_path() -> str:
    """Return the path of a view that takes tokens and no parameters, for the ready curl line."""
    for route, _view in guarded_views():
        # Routers write plain paths as regular expressions.
        path = re.sub(r"\^|\$|\\Z", "", route)
        if not re.search(r"[<>()\[\]\\?*+|]", path):
            return get_script_prefix().rstrip("/") + path
    return get_script_prefix()
