"""The example site's settings, with the audit's rows going to the Redis that REDIS_URL names."""

import os

from project.settings import *  # noqa: F403
from project.settings import TOKENAUTH as _TOKENAUTH

TOKENAUTH = {**_TOKENAUTH, "AUDIT_SINK": "tokenauth.audit.redis_stream.RedisStreamSink"}
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "ratelimit": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "audit": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": os.environ["REDIS_URL"],
    },
}
