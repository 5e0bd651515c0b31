"""The app's configuration."""

from __future__ import annotations

from django.apps import AppConfig, apps
from django.db.models.signals import pre_delete
from django.utils.translation import gettext_lazy as _


class TokenAuthConfig(AppConfig):
    """Registers the app's checks and its signal handler."""

    name = "tokenauth"
    verbose_name = _("API tokens")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Import the modules that need the models, which are loaded only now."""
        from tokenauth import checks  # noqa: F401, PLC0415
        from tokenauth.services.stopping import on_token_deleted  # noqa: PLC0415

        pre_delete.connect(
            on_token_deleted, sender="tokenauth.Token", dispatch_uid="tokenauth.deleted"
        )
        if apps.is_installed("drf_spectacular"):
            # It finds the extensions of the modules that are imported.
            from tokenauth import openapi  # noqa: F401, PLC0415
            from tokenauth.api import openapi as _api  # noqa: F401, PLC0415
