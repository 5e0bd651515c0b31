"""The API of MCRIT: every path requires a token in the header ``apitoken``.

``MCRIT_AUTH_TOKEN`` holds a token that is imported at start. Without it, every path still requires a
token. Only ``MCRIT_AUTH=off`` switches authentication off.
"""

import os

from project.settings import *  # noqa: F403
from project.settings import AT_START as _AT_START
from project.settings import MIDDLEWARE as _MIDDLEWARE
from project.settings import TOKENAUTH as _TOKENAUTH

API_IS_OPEN = os.environ.get("MCRIT_AUTH") == "off"
AT_START = [*_AT_START]
if os.environ.get("MCRIT_AUTH_TOKEN"):
    AT_START += [["tokenauth", "import", "--env", "MCRIT_AUTH_TOKEN", "--client", "mcrit"]]

TOKENAUTH = {
    **_TOKENAUTH,
    "TRANSPORTS": ["apitoken"],
    "ACTOR_HEADER": "username",
    "ERROR_FORMAT": "project.presets.mcrit_urls.error_format",
}
# No path is public or exempt. People use the admin of the default site, on the same data.
_GUARDS = ["tokenauth.middleware.TokenRequiredMiddleware"]
# Clients have no cookies. If tokens are required, a token proves that a request isn't forged.
_CSRF = "django.middleware.csrf.CsrfViewMiddleware"
MIDDLEWARE = [
    "project.presets.mcrit_urls.vary_on_accept",
    *([] if API_IS_OPEN else _GUARDS),
    *(name for name in _MIDDLEWARE[1:] if not (API_IS_OPEN and name == _CSRF)),
]

ROOT_URLCONF = "project.presets.mcrit_urls"
# Without the example site's MCP server, which the replaced system doesn't have.
MCP_PATHS = []
DATA_UPLOAD_MAX_MEMORY_SIZE = 64 * 2**20
"""Bytes of a report; uploaded binaries are never in memory as a whole."""
