"""Generated requests to the example site get documented answers, never 500.

Runs where TOKENAUTH_TEST_SCHEMATHESIS is set.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from project.wsgi import application
from tests.conftest import Issue
from tests.jwt_keys import jwt_settings
from tests.sinks import ListSink
from tokenauth.exceptions import Unavailable
from tokenauth.models import Event

if not os.environ.get("TOKENAUTH_TEST_SCHEMATHESIS"):
    pytest.skip("set TOKENAUTH_TEST_SCHEMATHESIS", allow_module_level=True)

pytestmark = [pytest.mark.schemathesis, pytest.mark.django_db]
schemathesis: Any = import_module("schemathesis")
openapi_checks: Any = import_module("schemathesis.specs.openapi.checks")

# DRF ignores bad page parameters, and refuses some texts that no schema can describe.
LENIENT = [openapi_checks.negative_data_rejection, openapi_checks.positive_data_acceptance]
# `verify/` also accepts methods that no schema can list.
FOR_ANY_METHOD = [*LENIENT, openapi_checks.unsupported_method]
CONFORMANCE = [
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
]
BY_TEXT = {"/auth/revoke/", "/auth/token/"}
"""Paths where every token may ask about itself, whatever its scopes."""
OPEN = {"/auth/jwks/": {200, 405}}
"""How paths answer that need no token."""
FEW = hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Keep the host: Django answers 400 to another one, before any view."""
    for name in [name for name in case.headers if name.lower() == "host"]:
        del case.headers[name]


def load(*, with_credentials: bool) -> Any:
    """Load the schema that the site serves; with generated credentials, or without any."""
    schema = schemathesis.openapi.from_wsgi("/schema/?format=json", application)
    schema.config.generation.update(modes=list(schemathesis.GenerationMode))
    schema.config.generation.with_security_parameters = with_credentials
    return schema


bare, guessing = load(with_credentials=False), load(with_credentials=True)


@pytest.fixture(autouse=True)
def _with_jwt(configure: Callable[..., None]) -> None:
    configure(JWT=jwt_settings())


@pytest.fixture
def token(issue: Issue) -> dict[str, str]:
    scopes = ["samples:*", "tokenauth:manage", "tokenauth:introspect"]
    return {"X-Api-Key": str(issue(scopes=scopes).plaintext)}


@pytest.fixture
def useless_token(issue: Issue) -> dict[str, str]:
    return {"Authorization": f"Bearer {issue(scopes=['mcp:use']).plaintext!s}"}


def leniency_for(case: Any) -> list[Any]:
    return FOR_ANY_METHOD if case.path.endswith("/verify/") else LENIENT


@bare.parametrize()
@FEW
def test_with_a_token(case: Any, token: dict[str, str]) -> None:
    answer = case.call_and_validate(headers=token, excluded_checks=leniency_for(case))
    # The request says what it requires there, or asks for: it may be beyond the token's rights.
    may_forbid = case.path.startswith(("/auth/tokens/", "/auth/verify/"))
    assert answer.status_code not in {401, 429, 503}
    assert answer.status_code != 403 or may_forbid


@bare.parametrize()
@FEW
def test_without_the_scope(case: Any, useless_token: dict[str, str]) -> None:
    answer = case.call_and_validate(headers=useless_token, excluded_checks=leniency_for(case))
    unreadable = {400, 415} if case.path in BY_TEXT else set()
    assert answer.status_code in {200, 403, 404, 405, *unreadable}


@guessing.parametrize()
@FEW
def test_with_generated_credentials(case: Any) -> None:
    answer = case.call_and_validate(excluded_checks=leniency_for(case))
    assert answer.status_code in OPEN.get(case.path, {401, 404})


@pytest.mark.usefixtures("limits_on")
@guessing.parametrize()
@FEW
def test_too_often(case: Any, configure: Callable[..., None]) -> None:
    configure(FAILURE_RATE="2/m")
    answer = case.call_and_validate(excluded_checks=leniency_for(case))
    assert answer.status_code in OPEN.get(case.path, {401, 404, 429})


@bare.parametrize()
@FEW
def test_during_an_outage(
    case: Any, token: dict[str, str], configure: Callable[..., None], monkeypatch: Any
) -> None:
    monkeypatch.setattr(ListSink, "failing", {Event.AUTH_ACCEPTED: Unavailable()})
    configure(AUDIT_SINK="tests.sinks.ListSink")
    answer = case.call_and_validate(headers=token, checks=CONFORMANCE)
    assert answer.status_code in OPEN.get(case.path, {404, 503})
