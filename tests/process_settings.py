"""The example site with keys for seals, for commands in processes of their own.

Without the pages that describe the API: loading what they need takes a fifth of a command's time.
"""

from project.settings import *  # noqa: F403
from project.settings import INSTALLED_APPS as _INSTALLED_APPS
from project.settings import TOKENAUTH as _TOKENAUTH

INSTALLED_APPS = [app for app in _INSTALLED_APPS if not app.startswith("drf_spectacular")]
ROOT_URLCONF = "tokenauth.api.urls"
TOKENAUTH = {**_TOKENAUTH, "AUDIT_SEAL_KEYS": {"2026": "k" * 32}}
