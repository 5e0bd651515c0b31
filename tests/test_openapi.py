"""What drf-spectacular says of views that take our tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from django.core.management import call_command
from django.http import HttpRequest
from django.test import Client
from django.urls import path
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.settings import patched_settings, spectacular_settings
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from drf_spectacular.validation import validate_schema
from pytest_django import Settings
from rest_framework.authentication import BasicAuthentication, SessionAuthentication
from rest_framework.decorators import action
from rest_framework.permissions import AllowAny, IsAdminUser, IsAuthenticated
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.throttling import UserRateThrottle
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from tests.conftest import Issue, bearer
from tests.presets import use_preset
from tests.thorough import thorough
from tokenauth.authentication import TokenAuthentication
from tokenauth.openapi import document_refusals
from tokenauth.permissions import HasAnyScope, HasScopes, HasUser
from tokenauth.responses import Refusal
from tokenauth.throttling import TokenRateThrottle

JSON = dict[str, Any]
READ, WRITE, PUBLISH = "samples:read", "samples:write", "samples:publish"
BEARER, KEY = "tokenauth_authorization_bearer", "tokenauth_x-api-key"


def answers_json(method: Any) -> Any:
    return extend_schema(request=None, responses=OpenApiTypes.OBJECT)(method)


class Thing(APIView):
    """A thing."""

    authentication_classes: Any = [TokenAuthentication]
    permission_classes: Any = [HasScopes]
    required_scopes: Any = [READ]

    @answers_json
    def get(self, request: Request) -> Response:
        return Response({})


class Things(ViewSet):
    """Things."""

    authentication_classes = [TokenAuthentication]
    permission_classes = [HasScopes]
    read_scopes, write_scopes = [READ], [WRITE]
    action_scopes = {"publish": [PUBLISH, WRITE]}

    @answers_json
    def list(self, request: Request) -> Response:
        return Response({})

    @answers_json
    def create(self, request: Request) -> Response:
        return Response({})

    @answers_json
    @action(detail=False, methods=["POST"])
    def publish(self, request: Request) -> Response:
        return Response({})


class Text(BaseRenderer):
    media_type, format = "text/plain", "txt"

    def render(self, data: Any, *_args: Any, **_kwargs: Any) -> bytes:
        return str(data).encode()


class Open(APIView):
    """No guard of ours."""

    authentication_classes = [BasicAuthentication]
    permission_classes = [IsAdminUser]
    throttle_classes = [UserRateThrottle]

    @answers_json
    def get(self, request: Request) -> Response:
        return Response({})


class Partner(TokenAuthentication):
    def authenticate(self, request: Any) -> Any:
        return super().authenticate(request)


class NotOnSundays(IsAuthenticated):
    pass


class OnceAnHour(UserRateThrottle):
    rate = "1/hour"


def like(**attributes: Any) -> Any:
    return type("Like", (Thing,), attributes)


class Site:
    """A URLconf."""

    def __init__(self, *views: Any, where: str = "thing/") -> None:
        router = SimpleRouter()
        router.register("things", Things, basename="thing")
        self.urlpatterns: list[Any] = [path(where, view.as_view()) for view in views] or router.urls


def generate(site: Site, settings: Settings) -> JSON:
    """Return the schema of ``site``, checked as ``spectacular --fail-on-warn --validate`` does."""
    settings.ROOT_URLCONF = site
    schema: JSON = SchemaGenerator().get_schema(public=True)
    assert not GENERATOR_STATS
    validate_schema(schema)
    return schema


def operation_of(view: Any, settings: Settings) -> JSON:
    found: JSON = generate(Site(view), settings)["paths"]["/thing/"]["get"]
    return found


def responses_of(schema: JSON, where: str = "/thing/") -> JSON:
    """Return an operation's responses with components in their places."""
    found = schema["paths"][where]["get"]["responses"]
    shared = schema["components"]["responses"]
    return {
        status: shared[answer["$ref"].rpartition("/")[2]] if "$ref" in answer else answer
        for status, answer in found.items()
    }


def test_the_example_site(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("spectacular", "--fail-on-warn", "--validate")
    assert "x-required-scopes" in capsys.readouterr().out


def test_the_preset_with_drf_views() -> None:
    with use_preset("mcp_guide"):
        call_command("spectacular", "--fail-on-warn", "--validate", "--file=/dev/null")


# Security schemes.


@pytest.mark.parametrize(
    ("transport", "scheme"),
    [
        ("Authorization: Bearer", {"type": "http", "scheme": "bearer"}),
        ("Authorization: Token", {"type": "http", "scheme": "token"}),
        ("X-Api-Key", {"type": "apiKey", "in": "header", "name": "X-Api-Key"}),
        ("X-Auth: Key", {"type": "apiKey", "in": "header", "name": "X-Auth"}),
    ],
)
def test_each_transport_is_a_scheme(
    transport: str, scheme: JSON, configure: Callable[..., None], settings: Settings
) -> None:
    configure(TRANSPORTS=[transport])
    schema = generate(Site(Thing), settings)
    [(name, found)] = schema["components"]["securitySchemes"].items()
    assert scheme.items() <= found.items()
    assert ("`Key`" in found.get("description", "")) == (transport == "X-Auth: Key")
    assert schema["paths"]["/thing/"]["get"]["security"] == [{name: []}]


@pytest.mark.parametrize(("where", "is_listed"), [("sse", True), ("sse/other", False)])
def test_query_parameters_are_listed_on_their_path_only(
    where: str, is_listed: bool, configure: Callable[..., None], settings: Settings
) -> None:
    configure(QUERY_PARAMS={"/sse": "token"})
    schema = generate(Site(Thing, where=where), settings)
    query: list[JSON] = [{"tokenauth_query.token": []}] if is_listed else []
    security = schema["paths"][f"/{where}"]["get"]["security"]
    assert security == [{BEARER: []}, {KEY: []}, *query]
    found = schema["components"]["securitySchemes"].get("tokenauth_query.token")
    assert found == ({"type": "apiKey", "in": "query", "name": "token"} if is_listed else None)


@pytest.mark.parametrize("permissions", [[AllowAny], []])
def test_views_without_permissions_work_without_a_token(
    permissions: list[Any], settings: Settings
) -> None:
    operation = operation_of(like(permission_classes=permissions), settings)
    assert operation["security"] == [{BEARER: []}, {KEY: []}, {}]
    assert sorted(operation["responses"]) == ["200", "401", "429", "503"]


# Scopes.


def test_scopes_of_each_operation(settings: Settings) -> None:
    schema = generate(Site(), settings)
    operations = {
        (where, method): operation
        for where, methods in schema["paths"].items()
        for method, operation in methods.items()
    }
    assert {key: found["x-required-scopes"] for key, found in operations.items()} == {
        ("/things/", "get"): [READ],
        ("/things/", "post"): [WRITE],
        ("/things/publish/", "post"): [PUBLISH, WRITE],
    }
    assert operations["/things/", "get"]["description"] == (
        "Things.\n\nRequires the scope `samples:read`."
    )
    assert all({BEARER: []} in operation["security"] for operation in operations.values())


@pytest.mark.parametrize(
    ("attributes", "text", "roles"),
    [
        ({}, f"Requires the scope `{READ}`.", [[READ]]),
        (
            {"required_scopes": [READ, WRITE]},
            f"Requires all of the scopes `{READ}`, `{WRITE}`.",
            [[READ, WRITE]],
        ),
        (
            {"permission_classes": [HasAnyScope], "required_scopes": [READ, WRITE]},
            f"Requires one of the scopes `{READ}`, `{WRITE}`.",
            [[READ], [WRITE]],
        ),
        (
            {"permission_classes": [HasScopes | IsAdminUser]},
            f"Requires the scope `{READ}`, unless another permission allows it.",
            [[]],
        ),
        (
            {"permission_classes": [HasScopes & HasUser]},
            f"Requires the scope `{READ}`. Requires a token that belongs to a user.",
            [[READ]],
        ),
        (
            {"required_scopes": None},
            "Refuses every API token, because the view declares no scopes.",
            [[]],
        ),
    ],
)
def test_scopes_in_words_and_as_roles_of_openapi_3_1(
    attributes: JSON, text: str, roles: list[list[str]], settings: Settings
) -> None:
    view = like(**attributes)
    assert operation_of(view, settings)["description"] == f"A thing.\n\n{text}"
    with patched_settings({"OAS_VERSION": "3.1.0"}):
        schema = SchemaGenerator().get_schema(public=True)
    assert schema["paths"]["/thing/"]["get"]["security"] == [
        {scheme: scopes} for scheme in (BEARER, KEY) for scopes in roles
    ]


def test_default_scopes_are_documented_where_they_are_enforced(
    configure: Callable[..., None], settings: Settings
) -> None:
    configure(DEFAULT_SCOPES={"read": [READ]})
    view = like(permission_classes=[IsAuthenticated], required_scopes=None)
    operation = operation_of(view, settings)
    assert operation["x-required-scopes"] == [READ]
    assert "403" in operation["responses"]
    exempt = operation_of(like(permission_classes=[IsAuthenticated], scopes_exempt=True), settings)
    assert "x-required-scopes" not in exempt


def test_openapi_3_1_is_valid_too(settings: Settings) -> None:
    with patched_settings({"OAS_VERSION": "3.1.0"}):
        assert generate(Site(), settings)["openapi"] == "3.1.0"


# Responses.


def tagged(refusal: Refusal, request: HttpRequest) -> tuple[Any, str]:
    """Format refusals in a way of the project's own."""
    error = {**refusal.body, "tags": ["a", 1], "after": refusal.retry_after, "ratio": 0.5}
    return {"ok": False, "error": error}, "application/vnd.own+json; charset=utf-8"


FORMATS = {
    "plain": ("tokenauth.responses.plain_json", "application/json"),
    "problem": ("tokenauth.responses.problem_details", "application/problem+json"),
    "own": ("tests.test_openapi.tagged", "application/vnd.own+json"),
    "text": ("tests.views.shout", "text/plain"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.usefixtures("limits_on")
def test_documented_answers_are_those_that_clients_get(
    name: str, configure: Callable[..., None], settings: Settings, client: Client, issue: Issue
) -> None:
    error_format, media_type = FORMATS[name]
    configure(ERROR_FORMAT=error_format, FAILURE_RATE="1/m")
    schema = generate(Site(like(permission_classes=[HasUser, HasScopes])), settings)
    documented = responses_of(schema)
    token: Any = {"HTTP_AUTHORIZATION": "Bearer bad"}
    answers = {
        "not_authenticated": client.get("/thing/"),
        "invalid_token": client.get("/thing/", **token),
        "throttled": client.get("/thing/", **token),
        "user_required": client.get("/thing/", **bearer(issue(scopes=[READ]))),
    }
    for code, answer in answers.items():
        found = documented[str(answer.status_code)]
        example = found["content"][media_type]["examples"][code]["value"]
        body = answer.json() if "json" in media_type else answer.content.decode()
        numbers = re.compile("[0-9]+|at /.*")
        assert numbers.sub("", str(example)) == numbers.sub("", str(body))
        assert answer["Content-Type"].startswith(media_type)
        assert all(header in answer for header in found["headers"])
    assert "unavailable" in documented["503"]["content"][media_type]["examples"]
    assert schema["components"]["schemas"]["TokenAuthError"]["type"] == (
        "string" if name == "text" else "object"
    )


def test_the_challenge_names_the_scopes(settings: Settings) -> None:
    forbidden = operation_of(Thing, settings)["responses"]["403"]
    assert forbidden["headers"]["WWW-Authenticate"]["example"] == (
        f'Bearer realm="api", error="insufficient_scope", scope="{READ}"'
    )


def test_the_schema_of_a_format_of_its_own(
    configure: Callable[..., None], settings: Settings
) -> None:
    configure(ERROR_FORMAT="tests.test_openapi.tagged")
    found = generate(Site(Thing), settings)["components"]["schemas"]["TokenAuthError"]
    text, error = {"type": "string"}, found["properties"]["error"]
    assert found["required"] == ["error", "ok"]
    assert found["properties"]["ok"] == {"type": "boolean"}
    assert error["properties"] == {
        "after": {},  # A number or null.
        "code": text,
        "detail": text,
        "ratio": {"type": "number"},
        "tags": {"type": "array", "items": {}},
    }


@pytest.mark.parametrize(
    ("attributes", "statuses", "foreign"),
    [
        ({"permission_classes": [IsAuthenticated]}, ["200", "401", "429", "503"], []),
        ({"throttle_classes": [TokenRateThrottle], "throttle_rate": "1/s"}, ..., []),
        ({"throttle_classes": [OnceAnHour]}, ..., ["429"]),
        ({"authentication_classes": [TokenAuthentication, BasicAuthentication]}, ..., ["401"]),
        ({"authentication_classes": [Partner]}, ..., ["401"]),
        ({"permission_classes": [HasScopes, IsAdminUser]}, ..., ["403"]),
        ({"permission_classes": [HasScopes, NotOnSundays]}, ..., ["403"]),
        ({"permission_classes": [HasScopes | IsAdminUser]}, ..., ["403"]),
    ],
)
def test_answers_of_other_classes(
    attributes: JSON, statuses: Any, foreign: Sequence[str], settings: Settings
) -> None:
    documented = responses_of(generate(Site(like(**attributes)), settings))
    assert list(documented) == (
        ["200", "401", "403", "429", "503"] if statuses is ... else statuses
    )
    bodies = {status: answer.get("content", {}) for status, answer in documented.items()}
    assert foreign == [
        status
        for status, content in bodies.items()
        if any("anyOf" in media["schema"] for media in content.values())
    ]


def test_answers_without_a_body_of_ours(settings: Settings) -> None:
    staff = operation_of(like(permission_classes=[IsAdminUser]), settings)
    assert "content" not in staff["responses"]["403"]

    class Session(Thing):
        authentication_classes = [TokenAuthentication, SessionAuthentication]
        permission_classes = [IsAuthenticated]

        @answers_json
        def post(self, request: Request) -> Response:
            return Response({})

    operations = generate(Site(Session), settings)["paths"]["/thing/"]
    assert "403" not in operations["get"]["responses"]
    assert "403" in operations["post"]["responses"]  # CSRF protection refuses.


def test_throttles_that_need_a_request(settings: Settings) -> None:
    def get_throttles(self: Any) -> Any:
        return [self.kwargs["pk"]]

    answers = responses_of(generate(Site(like(get_throttles=get_throttles)), settings))
    assert "anyOf" in answers["429"]["content"]["application/json"]["schema"]


def test_refusals_in_the_formats_of_the_view(settings: Settings) -> None:
    view = like(renderer_classes=[JSONRenderer, Text])
    unauthorized = operation_of(view, settings)["responses"]["401"]
    assert sorted(unauthorized["content"]) == ["application/json", "text/plain"]


def test_what_the_project_documents_stays(settings: Settings) -> None:
    class Explicit(Thing):
        @extend_schema(responses={200: OpenApiTypes.OBJECT, 401: None, "4XX": None})
        def get(self, request: Request) -> Response:
            return Response({})

    operation = operation_of(Explicit, settings)
    assert operation["responses"]["401"] == {"description": "No response body"}
    assert list(operation["responses"]) == ["200", "401", "403", "429", "4XX", "503"]


def test_views_without_our_guard_stay_as_they_are(settings: Settings) -> None:
    beside = generate(Site(Open), settings)
    assert list(beside["paths"]["/thing/"]["get"]["responses"]) == ["200"]
    assert beside["paths"]["/thing/"]["get"]["security"] == [{"basicAuth": []}]
    assert "TokenAuthError" not in str(beside)


def rebuild(result: JSON, generator: Any, request: Any, public: bool) -> JSON:
    """Make all of the schema anew, as hooks that rename things do."""
    rebuilt: JSON = json.loads(json.dumps(result))
    return {**rebuilt, "x-seen": "TokenAuth503" in str(result["paths"])}


def test_hooks_of_the_project_run_after_ours(settings: Settings) -> None:
    with patched_settings({"POSTPROCESSING_HOOKS": ["tests.test_openapi.rebuild"]}):
        schema = generate(Site(Thing), settings)
    assert schema["x-seen"] is True
    assert "503" in schema["paths"]["/thing/"]["get"]["responses"]
    for _ in range(2):
        operation_of(Thing, settings)
    assert spectacular_settings.POSTPROCESSING_HOOKS.count(document_refusals) == 1


def test_subclasses_share_the_schemes(settings: Settings) -> None:
    class Other(TokenAuthentication):
        pass

    views = [like(authentication_classes=[cls]) for cls in (Partner, Other)]
    site = Site(Thing, like(authentication_classes=[Other, Partner]))
    site.urlpatterns += [path(f"{number}/", view.as_view()) for number, view in enumerate(views)]
    site.urlpatterns[1] = path("both/", site.urlpatterns[1].callback)
    schema = generate(site, settings)
    assert list(schema["components"]["securitySchemes"]) == [BEARER, KEY]
    for where in ("/thing/", "/both/", "/0/", "/1/"):
        assert schema["paths"][where]["get"]["security"] == [{BEARER: []}, {KEY: []}]


# The example site's pages.


def test_the_page_has_no_inline_script_and_nothing_of_other_hosts(client: Client) -> None:
    page = client.get("/docs/")
    text = page.content.decode()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == 6
    assert re.findall(r"<style|<script>|style=|javascript:|\bon[a-z]+=", text) == []
    for source in sources:
        assert source.startswith("/")
        assert client.get(source.replace("&amp;", "&")).status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?format=json",
        "?lang=%00",
        *(
            pytest.param(query, marks=thorough)
            for query in ("?lang=de", "?lang=../..", "?version=x", "?lang=" + "x" * 900)
        ),
    ],
)
def test_the_schema_is_public(query: str, client: Client) -> None:
    answer = client.get(f"/schema/{query}")
    assert answer.status_code == 200
    assert b"TokenAuthError" in answer.content


def test_paths_that_lead_nowhere(client: Client) -> None:
    answers = [client.get(f"/{where}/nowhere") for where in ("api", "else")]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert [answer["Content-Type"].split(";")[0] for answer in answers] == [
        "application/json",
        "text/html",
    ]
