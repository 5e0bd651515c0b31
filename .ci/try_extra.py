"""Use what one extra of the installed wheel is for; without an argument, list the extras."""

# ruff: noqa: PLC0415 - each function imports what its extra installs

import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

KEY = "k" * 16 + "0123456789abcdef"
TEXT = "tka_wheel"


def use_charts() -> None:
    """Draw the overview's charts."""
    from tokenauth.admin import charts, figures

    row = figures.Row(label="10.0.0.1", counts=(3,))
    columns = {"heading": "address", "columns": ("failures",), "rows": [row]}
    assert b"<svg" in charts.draw(figures.Figure(name="failures", title="Failures", **columns))


def use_jwt() -> None:
    """Exchange a token for a JWT, and verify it."""
    from django.test import Client
    from django.utils import timezone

    from tokenauth.client_info import ClientInfo
    from tokenauth.services import issue
    from tokenauth.verifiers.database import DatabaseVerifier
    from tokenauth.verifiers.jwt import issue_jwt

    text = issue(client_id="wheel").plaintext
    principal = DatabaseVerifier()(text, client_info=ClientInfo(), now=timezone.now())
    headers = {"Authorization": f"Bearer {issue_jwt(principal).plaintext}"}
    answer = Client().get("/auth/tokens/current/", headers=headers)
    assert answer.json()["client_id"] == "wheel", answer.content


def use_mcp() -> None:
    """Make what an MCP server is guarded by."""
    from tokenauth.mcp import DjangoTokenVerifier, MCPAdmission

    DjangoTokenVerifier(resource="https://api.example/mcp", required_scopes=["mcp:use"])
    MCPAdmission(lambda *_args: None)


def use_openapi() -> None:
    """Describe the API with its security schemes."""
    from drf_spectacular.generators import SchemaGenerator

    schema = SchemaGenerator().get_schema(public=True)
    schemes = schema["paths"]["/auth/tokens/current/"]["get"]["security"]
    assert schemes
    assert all(
        scheme.keys() <= schema["components"]["securitySchemes"].keys() for scheme in schemes
    )


def use_progress() -> None:
    """Draw a progress bar."""
    from tokenauth.management import progress

    assert progress.tqdm is not None
    with progress.show_progress("Trying") as update:
        update(1)


def use_redis() -> None:
    """Count in the cache whose Redis is gone, and import the sink."""
    from django.core.cache import cache

    from tokenauth.audit.redis_stream import RedisStreamSink

    assert RedisStreamSink
    cache.add("wheel", 0)
    assert cache.incr("wheel") == 1


def use_requests() -> None:
    """Add the header to a request."""
    import requests

    from tokenauth.clients.requests import TokenAuth

    request = requests.Request("GET", "https://api.example/", auth=TokenAuth(token=TEXT)).prepare()
    assert request.headers["Authorization"] == f"Bearer {TEXT}"
    assert "django" not in sys.modules


def use_httpx() -> None:
    """Add the header to a request."""
    import httpx

    from tokenauth.clients.httpx import TokenAuth

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=request.headers["Authorization"])

    with httpx.Client(transport=httpx.MockTransport(answer), auth=TokenAuth(token=TEXT)) as client:
        assert client.get("https://api.example/").text == f"Bearer {TEXT}"
    assert "django" not in sys.modules


USES: Mapping[str, Callable[[], None]] = {
    name.removeprefix("use_"): use for name, use in globals().items() if name.startswith("use_")
}
CLIENTS = {"requests", "httpx"}
"""These need no Django."""
_JWT = {
    "VERIFIERS": [
        "tokenauth.verifiers.jwt.JWTVerifier",
        "tokenauth.verifiers.database.DatabaseVerifier",
    ],
    "JWT": {"algorithm": "HS256", "keys": {"1": KEY}, "issuer": "wheel", "audience": "wheel"},
}
APPS = {"openapi": ["drf_spectacular"]}
SETTINGS: Mapping[str, dict[str, Any]] = {
    "jwt": {"TOKENAUTH": _JWT},
    "openapi": {
        "REST_FRAMEWORK": {"DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema"},
    },
    "redis": {
        "CACHES": {
            "default": {
                "BACKEND": "tokenauth.cache.FallbackRedisCache",
                "LOCATION": "redis://127.0.0.1:1/0",
            }
        }
    },
}

if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(*USES)
        sys.exit()
    extra = sys.argv[1]
    offered = set(metadata.metadata("drf-tokenauth").get_all("Provides-Extra") or ()) - {"dev"}
    assert offered == set(USES), offered ^ set(USES)
    if extra not in CLIENTS:
        from wheel_site import set_up

        set_up(*APPS.get(extra, ()), **SETTINGS.get(extra, {}))
    USES[extra]()
    print(f"drf-tokenauth[{extra}] works")
