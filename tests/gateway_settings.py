"""The example site behind a gateway on the same machine."""

from project.settings import *  # noqa: F403
from project.settings import TOKENAUTH as _TOKENAUTH

TOKENAUTH = {**_TOKENAUTH, "TRUSTED_PROXIES": ["127.0.0.1"]}
