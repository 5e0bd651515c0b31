"""Settings of a site that uses all three packages that people move in from."""

from project.settings import *  # noqa: F403
from project.settings import DATA_DIR as _DATA_DIR
from project.settings import DATABASES as _DATABASES
from project.settings import INSTALLED_APPS as _INSTALLED_APPS
from project.settings import TOKENAUTH as _TOKENAUTH

INSTALLED_APPS = [
    *_INSTALLED_APPS,
    *("rest_framework.authtoken", "knox", "rest_framework_api_key", "tests.moving"),
]
ROOT_URLCONF = "tests.moving.urls"
# In a file: connections of several threads share no database in memory.
DATABASES = {
    "default": {**_DATABASES["default"], "TEST": {"NAME": _DATA_DIR / "test.sqlite3"}}
    if "sqlite3" in str(_DATABASES["default"]["ENGINE"])
    else _DATABASES["default"]
}
TOKENAUTH = {
    **_TOKENAUTH,
    "TRANSPORTS": ["Authorization: Bearer", "Authorization: Token", "Authorization: Api-Key"],
    "IMPORTED_SCOPES": ["samples:read"],
    "VERIFIERS": [
        "tokenauth.verifiers.database.DatabaseVerifier",
        "tokenauth.migrate.authtoken.AuthtokenVerifier",
        "tokenauth.migrate.knox.KnoxVerifier",
        "tokenauth.migrate.api_key.APIKeyVerifier",
        "tests.moving.verifiers.TeamKeyVerifier",
        "tests.moving.verifiers.DeviceVerifier",
    ],
}
