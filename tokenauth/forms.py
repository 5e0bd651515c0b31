"""Forms for issuing, changing and confirming. The rules are in ``services`` and ``policy``."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any, cast

from django import forms
from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.core.signing import BadSignature, Signer
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.timesince import timesince
from django.utils.translation import gettext, ngettext
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

LIFETIMES = (7, 30, 90, 365)
"""The lives that the form offers, in days."""
USUAL = 90
"""The life that is chosen at first, in days; a shorter one if it isn't offered."""
CUSTOM = "custom"
GRACES = (timedelta(), timedelta(hours=1), timedelta(days=1), timedelta(days=7))
"""Choices for how long a rotated token is still accepted; ``ROTATION_GRACE`` is offered too."""
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


class ScopesWidget(forms.CheckboxSelectMultiple):
    """Checkboxes, those of each namespace in a fieldset of their own."""

    template_name = "admin/tokenauth/widgets/scopes.html"


class _TokenForm(forms.ModelForm):  # type: ignore[type-arg]
    """What issuing and changing share. ``actor`` is set by the admin on a subclass."""

    actor: Actor

    scopes = forms.MultipleChoiceField(label=_("Scopes"), required=False, widget=ScopesWidget)
    allowed_networks = ListField(
        label=_("Allowed networks"),
        required=False,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 3, "cols": 40}),
        help_text=_(
            "One per line, for example 192.0.2.0/24 or 2001:db8::/32. If this is empty, the token "
            "is accepted from any address."
        ),
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
            hint = _("Separated by spaces. * grants every scope, ns:* every scope under ns:.")
            self.fields["scopes"] = ListField(label=_("Scopes"), required=False, help_text=hint)
            return
        offered = declared or dict.fromkeys(get_settings().self_service_scopes, "")
        refused = set(policy.ungrantable(self.actor, offered))
        choices = {scope: about for scope, about in offered.items() if scope not in refused}
        choices |= {scope: offered.get(scope, "") for scope in granted}
        field: Any = self.fields["scopes"]
        # Any of them may be sent: ``policy`` refuses what was not offered, and the audit has it.
        field.choices = [(scope, scope) for scope in {**offered, **choices}]
        field.widget.choices = _group(choices)
        field.help_text = "" if choices else _("You may not grant any scope.")

    def _post_clean(self) -> None:
        """Leave the instance as it is stored: ``services`` checks, changes and saves it."""

    def clean_expires_at(self) -> Any:
        """Refuse a new end in the past, because disabling and revoking stop a token."""
        expires_at = self.cleaned_data["expires_at"]
        if "expires_at" in self.changed_data and expires_at and expires_at <= timezone.now():
            raise ValidationError(_("This is in the past. To stop a token, disable or revoke it."))
        return expires_at

    def get_changes(self) -> Changes:
        """Return the values of the fields without errors, as ``services`` takes them."""
        names = [name for name in Changes.__annotations__ if name in self.cleaned_data]
        return cast("Changes", {name: self.cleaned_data[name] for name in names})

    def clean(self) -> None:
        """Ask ``services`` whether it would accept this input; show all that it refuses."""
        super().clean()
        known = set(self.errors)
        while True:
            try:
                self._ask_services()
            except (ValidationError, NotPermitted) as refusal:
                self._add_refusal(refusal)
            # Ask again about the fields that have no errors yet, unless the error has no field.
            if set(self.errors) == known or NON_FIELD_ERRORS in self.errors:
                return
            known = set(self.errors)

    def _ask_services(self) -> None:
        """Raise what ``services`` would raise for the input that has no errors yet."""
        raise NotImplementedError

    def _add_refusal(self, refusal: ValidationError | NotPermitted) -> None:
        """Show a refusal by ``services`` beside the field that it names."""
        if isinstance(refusal, NotPermitted):
            refusal = ValidationError({refusal.field: refusal.message})
        by_field = getattr(refusal, "error_dict", None) or {"": refusal.error_list}
        for name, errors in by_field.items():
            if name not in self.errors:
                for error in errors:
                    self.add_error(name if name in self.fields else None, error)


class IssueForm(_TokenForm):
    """Issues a token. Sent twice, it issues once: the token's public id comes with the form."""

    lifetime = forms.ChoiceField(label=_("Expires"), required=False, widget=forms.RadioSelect)
    ticket = forms.CharField(label="", required=False, widget=forms.HiddenInput)

    class Media:
        js = ["tokenauth/issue.js"]

    class Meta(_TokenForm.Meta):
        fields = ["user", "client_id", *_TokenForm.Meta.fields]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["ticket"] = _signer().sign(generate_public_id())
        self.fields["client_id"].required = False
        self.fields["client_id"].help_text = _(
            "The program that calls with the token, for example claude-desktop. "
            "If this is empty, it is the user's name."
        )
        self._offer_lifetimes()
        if not policy.may_issue_for_others(self.actor):
            self.fields.pop("user", None)

    def _offer_lifetimes(self) -> None:
        """Offer the usual lives within ``MAX_LIFETIME``, and say when the token would end."""
        limit, now = get_settings().max_lifetime, timezone.now()
        days = [day for day in LIFETIMES if limit is None or timedelta(days=day) <= limit]
        choices: list[Any] = [(str(day), _say_end(day, now + timedelta(days=day))) for day in days]
        if limit is None:
            choices.append(("", _("never")))
        elif timedelta(days=days[-1] if days else 0) != limit:
            longest = _("after %(limit)s, the longest life")
            choices.append(("", longest % {"limit": format_duration(limit)}))
        field: Any = self.fields["lifetime"]
        field.choices = [*choices, (CUSTOM, _("at the time below"))]
        self.initial["lifetime"] = str(max((day for day in days if day <= USUAL), default=""))
        self.fields["expires_at"].label = _("Expires at")
        self.fields["expires_at"].help_text = _("A time given here replaces the choice above.")

    def get_user(self) -> Any:
        """Return the owner: the chosen user, or the actor if the form has no choice."""
        return self.cleaned_data.get("user") if "user" in self.fields else self.actor.user

    def clean(self) -> None:
        try:
            self.cleaned_data["ticket"] = _read_ticket(self.cleaned_data.get("ticket", "\0"))
        except ValidationError as error:
            # Not in the field's own method: an error beside a hidden field is easily overlooked.
            self.add_error(None, error)
            return
        self._set_end()
        super().clean()

    def _set_end(self) -> None:
        lifetime = self.cleaned_data.get("lifetime", "")
        if self.cleaned_data.get("expires_at") or "expires_at" in self.errors:
            return
        if lifetime == CUSTOM:
            self.add_error("expires_at", _("Give the date and the time."))
        elif lifetime:
            end = timezone.now() + timedelta(days=int(lifetime))
            self.cleaned_data["expires_at"] = end

    def _ask_services(self) -> None:
        client_id, user = self.cleaned_data.get("client_id", ""), self.get_user()
        if self.errors.keys() & {"client_id", "user"} and not client_id and user is None:
            # Any user will do here: the other fields are checked although the owner has an error.
            user = self.actor.user
        services.check_issue(client_id=client_id, user=user, by=self.actor, **self.get_changes())


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
        help_text=_("Recorded in the audit."),
        widget=forms.TextInput(attrs={"class": "vTextField"}),
    )

    def clean_reason(self) -> str:
        """Remove the text of a token, because the reason is also stored in the admin's own log."""
        return sanitise(self.cleaned_data["reason"], REASON_LENGTH)

    def get_options(self) -> dict[str, Any]:
        """Return the input as the operation's service takes it."""
        return {"reason": self.cleaned_data["reason"]}


class RotateForm(ConfirmForm):
    """Confirms a rotation, and asks how long the old token is still accepted."""

    grace = forms.ChoiceField(
        label=_("The old token expires"),
        required=False,
        widget=forms.RadioSelect,
        help_text=_("The old token still expires at its own end, if that is earlier."),
    )
    field_order = ["grace", "reason"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        longest, now = get_settings().rotation_grace, timezone.now()
        shorter = [grace for grace in GRACES if grace < longest]
        field: Any = self.fields["grace"]
        field.choices = [
            (str(int(grace.total_seconds())), _say_grace(now, now + grace))
            for grace in (*shorter, longest)
        ]
        self.initial["grace"] = str(int(longest.total_seconds()))

    def get_options(self) -> dict[str, Any]:
        chosen = self.cleaned_data["grace"]
        grace = timedelta(seconds=int(chosen)) if chosen else None
        return {**super().get_options(), "grace": grace}


def _group(choices: dict[str, str]) -> list[Any]:
    """Return the choices of the widget: scopes by namespace, if there is more than one."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for scope, about in choices.items():
        namespace = scope.partition(":")[0] if ":" in scope else ""
        label = f"{scope} – {about}" if about else scope  # noqa: RUF001
        groups.setdefault(namespace, []).append((scope, label))
    if len(groups) <= 1:
        return [choice for group in groups.values() for choice in group]
    return [(namespace or _("other"), group) for namespace, group in groups.items()]


def _say_end(days: int, end: datetime) -> str:
    text = ngettext("after %(days)d day, on %(date)s", "after %(days)d days, on %(date)s", days)
    return text % {"days": days, "date": date_format(_localise(end), "DATE_FORMAT")}


def _say_grace(begin: datetime, end: datetime) -> str:
    if begin == end:
        return gettext("at once")
    text = gettext("after %(duration)s, on %(date)s")
    date = date_format(_localise(end), "DATETIME_FORMAT")
    return text % {"duration": timesince(begin, end), "date": date}


def _localise(moment: datetime) -> datetime:
    return timezone.localtime(moment) if timezone.is_aware(moment) else moment


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
        text = _(
            "This form was already sent. Token %(id)s was issued, and its text was shown then."
        )
        raise ValidationError(text, params={"id": public_id})
    return public_id
