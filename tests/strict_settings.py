"""The example site's settings, with few failures allowed, and a clock and a Redis to rely on."""

from types import SimpleNamespace

from django_ratelimit import core

from project.settings import *  # noqa: F403
from project.settings import TOKENAUTH as _TOKENAUTH
from tokenauth import cache

TOKENAUTH = {**_TOKENAUTH, "FAILURE_RATE": "5/d"}

# No window ends while the tests count, the same one in every process.
core.time = SimpleNamespace(time=lambda: 1_800_000_000.0)
# On a busy machine a Redis that is well may take longer than it should elsewhere.
cache.CALL_TIMEOUT_SECONDS = 10
