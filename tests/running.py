"""How the tests are run: in which processes, which of them, and what would slow them down."""

from __future__ import annotations

import gc
import os
from collections import defaultdict
from collections.abc import Generator
from functools import cache

import pytest
from django.conf import settings as django_settings
from django.views.debug import DEBUG_ENGINE
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from tests.thorough import IS_THOROUGH, examples

# The servers that tests call are on this machine; a proxy is not on the way to them.
os.environ |= {"NO_PROXY": "*", "no_proxy": "*"}

# A busy machine is no failure. Each run draws other examples.
hypothesis_settings.register_profile(
    "tokenauth",
    deadline=None,
    max_examples=examples(10, thorough=50),
    suppress_health_check=[HealthCheck.too_slow],
)
hypothesis_settings.load_profile("tokenauth")

MOST_CASES = "TOKENAUTH_TEST_CASES"
"""How many cases of a parametrised test run, 2 or more; if it isn't set, all. "thorough" ignores it."""

PLUGINS = "pytest_django.plugin,xdist.plugin,_hypothesis_pytestplugin"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite on SQLite in several processes, where pytest-xdist is installed.

    One process runs what is selected, and what needs a server: other processes would disturb it.
    Outside the lane "thorough", the whole suite takes some cases of a test that has many.
    """
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    special = ("DATABASE_URL", "TOKENAUTH_TEST_", "PYTEST_XDIST_WORKER")
    names = os.environ.keys() - {"TOKENAUTH_TEST_THOROUGH", MOST_CASES}
    options = config.option
    if (
        is_whole
        and getattr(options, "numprocesses", 0) is None
        and not (options.markexpr or options.keyword or options.usepdb)
        and not any(name.startswith(special) for name in names)
    ):
        options.numprocesses = min(os.cpu_count() or 1, 4)
        options.dist = "loadfile"
        os.environ.setdefault(MOST_CASES, "4")
        # Each process loads these plugins only: pytest rewrites all modules of what it finds itself.
        os.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": PLUGINS}


def pytest_configure() -> None:
    """Change what would be slow, or in the way, in every test."""
    # WhiteNoise looks for a file when it is requested, not for all files in each new client.
    django_settings.WHITENOISE_AUTOREFRESH = True
    # Passwords are hashed slowly on purpose elsewhere; no test guesses them.
    django_settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    # All tests call from one address; those about limits switch them on.
    django_settings.RATELIMIT_ENABLE = False
    # Django compiles the templates of its error page anew for each page.
    DEBUG_ENGINE.from_string = cache(DEBUG_ENGINE.from_string)  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from looking at all tests, again and again.

    Hundreds of thousands of objects are made for them, and stay until the end.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def spread(cases: list[pytest.Item]) -> list[pytest.Item]:
    """Return the cases of one test that run: the first, the last, and some evenly between them."""
    most = int(os.environ.get(MOST_CASES, len(cases)))
    if len(cases) <= most or cases[0].get_closest_marker("every_case"):
        return cases
    return [cases[round(i * (len(cases) - 1) / (most - 1))] for i in range(most)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the lane "thorough", and what takes long and is the same on every database."""
    if not IS_THOROUGH:
        tests = defaultdict(list)
        for item in items:
            if not item.get_closest_marker("thorough"):
                tests[item.nodeid.partition("[")[0]].append(item)
        chosen = {case for cases in tests.values() for case in spread(cases)}
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = [item for item in items if item in chosen]
    if os.environ.get("TOKENAUTH_TEST_SERVERS"):
        return
    skip = pytest.mark.skip(reason="set TOKENAUTH_TEST_SERVERS")
    for item in items:
        if item.get_closest_marker("servers"):
            item.add_marker(skip)
