"""Forms for issuing, changing and confirming. The rules are in ``services`` and ``policy``."""

from __future__ import annotations

import re
from typing import Any, cast

from django import forms
from django.core.exceptions import ValidationError
from django.core.signing import BadSignature, Signer
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from tokenauth import policy, services
from tokenauth.client_info import Actor, sanitise
from tokenauth.conf import get_settings
from tokenauth.conf.values import format_duration
from tokenauth.exceptions import NotPermitted
from tokenauth.models import Token
from tokenauth.services import Changes
from tokenauth.services.cleaning import MOST, REASON_LENGTH
from tokenauth.tokens import generate_public_id

_SEPARATORS = re.compile(r"[\s,]+")


class ListField(forms.CharField):
    """Words separated by spaces, commas or lines; cleans to a list."""

    def to_python(self, value: Any) -> Any:
        if isinstance(value, list):
            return value
        # Read no further than needed to know that there are too many.
        words = _SEPARATORS.split(str(value or "").strip(", \t\r\n"), maxsplit=MOST)
        if len(words) > MOST:
            raise ValidationError(_("Give at most %(most)d."), params={"most": MOST})
        return [word for word in words if word]

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value


class _TokenForm(forms.ModelForm):  # type: ignore[type-arg]
    """What issuing and changing share. ``actor`` is set by the admin on a subclass."""

    actor: Actor

    scopes = forms.MultipleChoiceField(
        label=_("Scopes"), required=False, widget=forms.CheckboxSelectMultiple
    )
    allowed_networks = ListField(
        label=_("Allowed networks"),
        required=False,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 3, "cols": 40}),
        help_text=_("One a line, for example 192.0.2.0/24 or 2001:db8::/32. Empty: from anywhere."),
    )

    class Meta:
        model = Token
        fields = ["name", "not_before", "expires_at", "rate"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        granted = list(self.instance.scope_set)
        if "scopes" in self.fields:
            self._offer_scopes(granted)
            self.initial["scopes"] = granted
        if "allowed_networks" in self.fields:
            self.initial["allowed_networks"] = self.instance.allowed_networks.split()

    def _offer_scopes(self, granted: list[str]) -> None:
        """Offer what the actor may grant, and what the token has."""
        declared = get_settings().scopes
        if not declared and policy.may_grant_any_scope(self.actor):
            hint = _("Separated by spaces; * grants everything, ns:* all under ns:")
            self.fields["scopes"] = ListField(label=_("Scopes"), required=False, help_text=hint)
            return
        offered = declared or dict.fromkeys(get_settings().self_service_scopes, "")
        refused = set(policy.ungrantable(self.actor, offered))
        choices = {scope: about for scope, about in offered.items() if scope not in refused}
        choices |= {scope: offered.get(scope, "") for scope in granted}
        field: Any = self.fields["scopes"]
        # Any of them may be sent: ``policy`` refuses what was not offered, and the audit has it.
        field.choices = [(scope, scope) for scope in {**offered, **choices}]
        field.widget.choices = [
            (scope, f"{scope} – {about}" if about else scope)  # noqa: RUF001
            for scope, about in choices.items()
        ]
        field.help_text = "" if choices else _("There is no scope that you may grant.")

    def _post_clean(self) -> None:
        """Leave the instance as it is stored: ``services`` checks, changes and saves it."""

    def clean_expires_at(self) -> Any:
        """Refuse a new end that is over already: disabling and revoking stop a token."""
        expires_at = self.cleaned_data["expires_at"]
        if "expires_at" in self.changed_data and expires_at and expires_at <= timezone.now():
            raise ValidationError(_("This is in the past. To stop a token, disable or revoke it."))
        return expires_at

    def get_changes(self) -> Changes:
        """Return the input as ``services`` takes it."""
        names = [name for name in Changes.__annotations__ if name in self.fields]
        return cast("Changes", {name: self.cleaned_data[name] for name in names})

    def clean(self) -> None:
        """Ask ``services`` whether it would accept this input."""
        super().clean()
        if not self.errors:
            try:
                self._ask_services()
            except (ValidationError, NotPermitted) as refusal:
                self.add_refusal(refusal)

    def _ask_services(self) -> None:
        raise NotImplementedError

    def add_refusal(self, refusal: ValidationError | NotPermitted) -> None:
        """Show a refusal by ``services`` beside the field that it names."""
        if isinstance(refusal, NotPermitted):
            refusal = ValidationError({refusal.field: refusal.message})
        by_field = getattr(refusal, "error_dict", None) or {"": refusal.error_list}
        for name, errors in by_field.items():
            for error in errors:
                self.add_error(name if name in self.fields else None, error)


class IssueForm(_TokenForm):
    """Issues a token. Sent twice, it issues once: the token's public id comes with the form."""

    ticket = forms.CharField(required=False, widget=forms.HiddenInput)

    class Meta(_TokenForm.Meta):
        fields = ["user", "client_id", *_TokenForm.Meta.fields]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["ticket"] = _signer().sign(generate_public_id())
        limit = get_settings().max_lifetime
        self.fields["client_id"].required = False
        self.fields["client_id"].help_text = _(
            "Who calls with it, for example claude-desktop. Empty: the user's name."
        )
        self.fields["expires_at"].help_text = (
            _("Empty: after %(limit)s, the longest life there is.")
            % {"limit": format_duration(limit)}
            if limit
            else _("Empty: never.")
        )
        if not policy.may_issue_for_others(self.actor):
            self.fields.pop("user", None)

    def get_user(self) -> Any:
        """Return the owner: the chosen user, or oneself where there is no choice."""
        return self.cleaned_data.get("user") if "user" in self.fields else self.actor.user

    def _ask_services(self) -> None:
        # Not in the field's own method: an error beside a hidden field is easily overlooked.
        self.cleaned_data["ticket"] = _read_ticket(self.cleaned_data["ticket"])
        services.check_issue(
            client_id=self.cleaned_data["client_id"],
            user=self.get_user(),
            by=self.actor,
            **self.get_changes(),
        )


class ChangeForm(_TokenForm):
    """Changes a token's label, scopes, dates and networks; its owner never changes."""

    def get_changes(self) -> Changes:
        """Return only what differs: dates lose their microseconds on the way through a form."""
        changes = super().get_changes().items()
        changed = {name: value for name, value in changes if name in self.changed_data}
        return cast("Changes", changed)

    def _ask_services(self) -> None:
        services.check_change(self.instance, by=self.actor, **self.get_changes())


class ConfirmForm(forms.Form):
    """Confirms an operation and says why, for the audit."""

    reason = forms.CharField(
        label=_("Reason"),
        max_length=REASON_LENGTH,
        required=False,
        help_text=_("Goes to the audit."),
        widget=forms.TextInput(attrs={"class": "vTextField"}),
    )

    def clean_reason(self) -> str:
        """Cut a token's text out: the reason goes to the admin's own log too."""
        return sanitise(self.cleaned_data["reason"], REASON_LENGTH)


def _signer() -> Signer:
    return Signer(salt="tokenauth.issue")


def _read_ticket(ticket: str) -> str:
    """Return the public id that a form came with, "" if it came without one."""
    try:
        public_id = _signer().unsign(ticket) if ticket else ""
    except BadSignature:
        problem = _("This form is invalid. Reload the page and try again.")
        raise ValidationError(problem) from None
    if public_id and Token.objects.primary().filter(public_id=public_id).exists():
        text = _("This form was sent already: token %(id)s was issued and its text shown then.")
        raise ValidationError(text, params={"id": public_id})
    return public_id
