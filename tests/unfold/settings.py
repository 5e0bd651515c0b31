"""Settings of that site."""

from project.settings import *  # noqa: F403
from project.settings import INSTALLED_APPS as _INSTALLED_APPS

INSTALLED_APPS = ["unfold", *_INSTALLED_APPS, "tests.unfold"]
ROOT_URLCONF = "tests.unfold.urls"
