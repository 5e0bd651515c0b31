"""The example site's settings with the views of ``hangup_site``, asynchronous all the way."""

from project.settings import *  # noqa: F403
from project.settings import MIDDLEWARE as _MIDDLEWARE

ROOT_URLCONF = "tests.hangup_site"
MIDDLEWARE = [name for name in _MIDDLEWARE if "whitenoise" not in name]
