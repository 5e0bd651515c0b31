"""Tokens in the admin: issue, change, rotate, disable, enable and revoke them."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.exceptions import NotRegistered
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import IntegrityError, router
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.translation import gettext_lazy as _

from tokenauth import policy, services
from tokenauth.admin.confirming import OperationPages, explain
from tokenauth.admin.incidents import IncidentPages
from tokenauth.admin.operations import find_offered
from tokenauth.admin.overview import OverviewPages
from tokenauth.admin.pages import find_url, show_issued
from tokenauth.admin.token_list import TokenListAdmin
from tokenauth.admin.usage import UsagePages
from tokenauth.client_info import Actor
from tokenauth.exceptions import NotPermitted
from tokenauth.forms import ChangeForm, IssueForm
from tokenauth.models import AuditEvent, Token
from tokenauth.services import Changes

_users: Any = get_user_model()
_OWNER = ["public_id", "state", "client_id", "user"]
_CHANGEABLE = list(Changes.__annotations__)
_ALWAYS_SHOWN = {"created_at", "created_by", "last_used_at"}
_HISTORY = [
    *("created_at", "created_by", "last_used_at", "last_used_ip", "revoked_at", "revoked_by"),
    *("revoked_reason", "disabled_by", "replaced_by", "parent", "imported_from", "imported_at"),
]


def _find_unset(token: Token) -> set[str]:
    """Return the fields of the history that are not shown, because nothing of this kind happened."""
    return {name for name in _HISTORY if name not in _ALWAYS_SHOWN and not getattr(token, name)}


def _without(hidden: set[str], fieldsets: Any) -> list[Any]:
    """Return ``fieldsets`` without these fields, and without the sections that have no other fields.

    A project's own sections and options are kept, also sections that it left empty.
    """
    kept = []
    for title, options in fieldsets:
        lines = (
            line if isinstance(line, str) else tuple(name for name in line if name not in hidden)
            for line in options["fields"]
        )
        fields = [line for line in lines if line and line not in hidden]
        if fields or not options["fields"]:
            kept.append((title, {**options, "fields": fields}))
    return kept


@admin.register(Token)
class TokenAdmin(OverviewPages, UsagePages, IncidentPages, OperationPages, TokenListAdmin):
    """Tokens. All writes go through ``services``; a token's text is shown once and never stored."""

    class Media:
        css: ClassVar = {
            "all": ["tokenauth/token.css", "tokenauth/lists.css", "tokenauth/unfold.css"]
        }

    form = ChangeForm
    raw_id_fields = ["user"]
    change_form_template = "admin/tokenauth/token/change_form.html"
    readonly_fields = [*_OWNER, *_HISTORY]
    fieldsets = [
        (None, {"fields": [*_OWNER]}),
        (_("Can be changed"), {"fields": [*_CHANGEABLE]}),
        (_("History"), {"fields": [*_HISTORY]}),
    ]

    def get_autocomplete_fields(self, request: HttpRequest) -> Any:
        """Offer a search for the user if the admin for users has one and the person may view users."""
        try:
            users = self.admin_site.get_model_admin(_users)
        except NotRegistered:
            return ()
        may_search = users.get_search_fields(request) and users.has_view_permission(request)
        return ("user",) if may_search else ()

    def formfield_for_foreignkey(
        self, db_field: Any, request: HttpRequest, **kwargs: Any
    ) -> forms.ModelChoiceField[Any] | None:
        """Look the chosen user up where tokens are written."""
        using = router.db_for_write(Token)
        return super().formfield_for_foreignkey(db_field, request, **{**kwargs, "using": using})

    @admin.display(description=_("status"))
    def state(self, token: Token) -> Any:
        return token.status.label

    def get_form(self, request: HttpRequest, obj: Any = None, *args: Any, **kwargs: Any) -> Any:
        if obj is None:
            kwargs["form"] = IssueForm
        form = super().get_form(request, obj, *args, **kwargs)
        return type(form.__name__, (form,), {"actor": Actor.from_request(request)})

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is not None:
            return _without(_find_unset(obj), super().get_fieldsets(request, obj))
        owner = ["user"] if policy.may_issue_for_others(Actor.from_request(request)) else []
        return [
            (_("Owner"), {"fields": [*owner, "client_id", "name"]}),
            (_("Rights"), {"fields": ["scopes", "allowed_networks", "rate"]}),
            (_("Validity"), {"fields": ["lifetime", "expires_at", "not_before", "ticket"]}),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return [] if obj is None else super().get_readonly_fields(request, obj)

    def changeform_view(
        self, request: HttpRequest, object_id: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Show or process a form. A form that is sent twice at the same moment issues one token."""
        try:
            return super().changeform_view(request, object_id, *args, **kwargs)
        except IntegrityError:
            if object_id is not None:
                raise
            refusal = str(_("This form was already sent."))
        except (ValidationError, NotPermitted) as error:
            # The token was changed after the form was checked.
            refusal = explain(error)
        self.message_user(request, refusal, messages.ERROR)
        return HttpResponseRedirect(find_url(self.admin_site, "changelist"))

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Add the buttons that fit the token's status, and no others than "Save"."""
        token = context.get("original")
        context["show_save_and_add_another"] = context["show_save_and_continue"] = False
        if token is None:
            context["title"] = _("Issue token")
        else:
            offered = find_offered(token, Actor.from_request(request))
            context["operations"] = [
                operation for operation in offered if self.may_run(request, operation, token)
            ]
            audit = self.admin_site._registry.get(AuditEvent)
            if audit is not None and audit.has_view_permission(request):
                events = find_url(self.admin_site, "changelist", model="auditevent")
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
        """Answer the form with the new token's text. A redirect would have to store the text."""
        filters = self.get_preserved_filters(request)
        return show_issued(self.admin_site, request, request.tokenauth_issued, filters)
