"""Settings of the example site that the service asks. JWT_AUDIENCE names the audience of JWTs."""

import os

from project.settings import *  # noqa: F403
from project.settings import TOKENAUTH as _TOKENAUTH

TOKENAUTH = {**_TOKENAUTH}
if _audience := os.environ.get("JWT_AUDIENCE"):
    TOKENAUTH["JWT"] = {
        "algorithm": "HS256",
        "keys": {"2026": "a-long-secret-for-tests-only-0123456789"},
        "issuer": "https://auth.example",
        "audience": _audience,
    }
