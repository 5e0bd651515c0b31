"""The example site, with mails in files."""

import django

from project.settings import *  # noqa: F403
from project.settings import DATA_DIR as _DATA_DIR

_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
if django.VERSION >= (6, 1):
    MAILERS = {"default": {"BACKEND": _BACKEND, "OPTIONS": {"file_path": _DATA_DIR / "mails"}}}
else:
    EMAIL_BACKEND = _BACKEND
    EMAIL_FILE_PATH = _DATA_DIR / "mails"
