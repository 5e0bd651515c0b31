"""The app's configuration."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.db.models.signals import pre_delete
from django.utils.translation import gettext_lazy as _


class TokenAuthConfig(AppConfig):
    """Registers the app's checks and its one signal handler."""

    name = "tokenauth"
    verbose_name = _("API tokens")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register; these modules need the models, which exist only now."""
        from tokenauth import checks, services  # noqa: PLC0415

        pre_delete.connect(
            services.on_token_deleted, sender="tokenauth.Token", dispatch_uid="tokenauth.deleted"
        )
        register(checks.check_settings, "tokenauth")
        register(checks.check_databases, "tokenauth")
        register(checks.check_middleware, "tokenauth")
        register(checks.check_views, "tokenauth")
        register(checks.check_query_params, "tokenauth")
        register(checks.check_query_logs, "tokenauth", deploy=True)
        register(checks.check_cache, "tokenauth")
        register(checks.check_library, "tokenauth")
        register(checks.check_sink, "tokenauth")
        register(checks.check_jwt, "tokenauth")
        register(checks.check_redis, "tokenauth", deploy=True)
        register(checks.check_jwt_secrets, "tokenauth", deploy=True)
        register(checks.check_shared_cache, "tokenauth", deploy=True)
        register(checks.check_peppers, "tokenauth", Tags.database)
        register(checks.check_deployment, "tokenauth", deploy=True)
        register(checks.check_production, "tokenauth", deploy=True)
        register(checks.check_open_views, "tokenauth", deploy=True)
        register(checks.check_key_files, "tokenauth", Tags.database, deploy=True)
