"""The app of that site."""

from django.apps import AppConfig


class UnfoldTestsConfig(AppConfig):
    """An app beside ``unfold``, which needs another label."""

    name = "tests.unfold"
    label = "tests_unfold"
