"""System checks. Each module registers its own; the ids are stable."""

from tokenauth.checks import (  # noqa: F401
    caching,
    deployment,
    durability,
    jwt,
    keyfiles,
    middleware,
    migrate,
    production,
    query_params,
    scopes,
    settings,
    sinks,
    views,
)
