"""SecuScan: a key in a file, sent as ``Authorization: Bearer`` or ``X-Api-Key``.

``TOKENAUTH_KEY_FILE``, or SecuScan's own ``SECUSCAN_API_KEY_FILE``, names the file. At start, a key is
written to it, or the key in it is imported. ``SECUSCAN_CORS_ALLOWED_ORIGINS`` has the origins of the
web UI, separated by commas; the default is none.
"""

import os

from corsheaders.defaults import default_headers

from project.settings import *  # noqa: F403
from project.settings import INSTALLED_APPS as _INSTALLED_APPS
from project.settings import MIDDLEWARE as _MIDDLEWARE
from project.settings import TOKENAUTH as _TOKENAUTH

_KEY_FILE = os.environ.get("TOKENAUTH_KEY_FILE") or os.environ.get("SECUSCAN_API_KEY_FILE")
AT_START = (
    [["tokenauth", "keyfile", f"--path={_KEY_FILE}", "--client", "secuscan"]] if _KEY_FILE else []
)

TOKENAUTH = {
    **_TOKENAUTH,
    "SCOPES": {"admin": "Administer SecuScan"},
    "SELF_SERVICE_SCOPES": [],
    "TOKEN_RATE": "100/m",
    "ERROR_FORMAT": "project.presets.secuscan_urls.error_format",
}
INSTALLED_APPS = [*_INSTALLED_APPS, "corsheaders"]
MIDDLEWARE = [
    # First, because a browser's preflight has no key.
    "corsheaders.middleware.CorsMiddleware",
    "project.presets.secuscan_urls.SecuScanMiddleware",
    *_MIDDLEWARE[1:],
]
CORS_ALLOWED_ORIGINS = [
    origin.strip()
    for origin in os.environ.get("SECUSCAN_CORS_ALLOWED_ORIGINS", "").split(",")
    if origin.strip()
]
CORS_ALLOW_HEADERS = [*default_headers, "x-api-key"]
CORS_EXPOSE_HEADERS = ["Retry-After"]

ROOT_URLCONF = "project.presets.secuscan_urls"
# Without the example site's MCP server, which the replaced system doesn't have.
MCP_PATHS = []
