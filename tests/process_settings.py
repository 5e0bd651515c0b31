"""The example site with keys for seals: for commands in processes of their own."""

from project.settings import *  # noqa: F403
from project.settings import TOKENAUTH as _TOKENAUTH

TOKENAUTH = {**_TOKENAUTH, "AUDIT_SEAL_KEYS": {"2026": "k" * 32}}
