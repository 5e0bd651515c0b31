"""Settings of that service. It is tested together with the example site's own routes."""

from project.settings import *  # noqa: F403
from project.settings import INSTALLED_APPS as _INSTALLED_APPS

INSTALLED_APPS = [*_INSTALLED_APPS, "oauth2_provider"]
ROOT_URLCONF = "tests.toolkit.urls"
