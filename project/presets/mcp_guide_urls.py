"""The guide's ``/execute``, by key and by JWT: limited, authenticated, validated, audited."""

from __future__ import annotations

import re
from typing import Any, cast

from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest
from django.urls import path
from rest_framework import exceptions, serializers
from rest_framework.permissions import IsAuthenticated
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView, exception_handler

from project.parsers import BodyParser
from tokenauth.authentication import TokenAuthentication
from tokenauth.client_info import read_header
from tokenauth.conf import get_settings
from tokenauth.exceptions import Code, NotPermitted
from tokenauth.permissions import HasAnyScope
from tokenauth.principal import Principal
from tokenauth.responses import Refusal
from tokenauth.verifiers.jwt import issue_jwt

TOOLS = [{"name": "echo"}, {"name": "search"}]
_TEXTS = {
    Code.INSUFFICIENT_SCOPE: "Insufficient permissions",
    Code.THROTTLED: "Rate limit exceeded",
}


class ToolName(serializers.RegexField):
    """A tool's name: a string, where DRF would take a number too."""

    def to_internal_value(self, data: Any) -> str:
        """Return the name; anything but a string is refused."""
        if not isinstance(data, str):
            self.fail("invalid")
        return str(super().to_internal_value(data))


class Seconds(serializers.IntegerField):
    """A number, also as a text of its digits: DRF would take "3_0" and "٣" too."""

    def to_internal_value(self, data: Any) -> int:
        """Return the number; refuses any other text."""
        if isinstance(data, str) and not re.fullmatch("[0-9]+", data):
            self.fail("invalid")
        return int(super().to_internal_value(data))


class ToolExecution(serializers.Serializer[Any]):
    """What ``/execute`` takes, and nothing else."""

    # Not ^…$, which lets a line end through.
    tool = ToolName(
        r"\A[a-zA-Z0-9_-]+\Z", trim_whitespace=False, error_messages={"invalid": "Invalid value."}
    )
    parameters = serializers.DictField()
    timeout = Seconds(min_value=1, max_value=300, default=30)

    def to_internal_value(self, data: Any) -> Any:
        """Return the checked values; raises ValidationError for unknown fields too."""
        errors = {}
        if isinstance(data, dict):
            errors = {
                # JSON can name what UTF-8 can't: "\\ud800".
                name.encode(errors="backslashreplace").decode(): ["Unknown field."]
                for name in data.keys() - self.fields.keys()
            }
        try:
            values = super().to_internal_value(data)
        except serializers.ValidationError as error:
            raise serializers.ValidationError({**error.detail, **errors}) from None  # type: ignore[dict-item]
        if errors:
            raise serializers.ValidationError(errors)
        return values


def run_tool(tool: str, parameters: dict[str, Any], timeout: int) -> str:
    """Run a tool; yours go here."""
    return "Tool executed"


class GuideView(APIView):
    """JSON in, JSON out, for whoever has a valid key."""

    authentication_classes = [TokenAuthentication]
    permission_classes: Any = [IsAuthenticated]
    parser_classes = [BodyParser]
    renderer_classes = [JSONRenderer]


class Tools(GuideView):
    """The tools there are."""

    def get(self, request: Request) -> Response:
        """List them."""
        return Response({"tools": TOOLS})


class Execute(GuideView):
    """Any valid key, as in the guide."""

    def post(self, request: Request) -> Response:
        """Run a tool."""
        execution = ToolExecution(data=request.data)
        execution.is_valid(raise_exception=True)
        return Response({"status": "success", "result": run_tool(**execution.validated_data)})


class ExecuteByJWT(Execute):
    """As above, for tokens with one of these permissions."""

    permission_classes = [HasAnyScope]
    required_scopes = ["tools:execute"]


class Exchange(GuideView):
    """A JWT for a key."""

    def post(self, request: Request) -> Response:
        """Sign one that lives for minutes."""
        if get_settings().jwt is None:
            raise Http404
        try:
            issued = issue_jwt(cast("Principal", request.auth))
        except NotPermitted as error:
            raise exceptions.PermissionDenied(error.message) from None
        except ValidationError as error:
            raise exceptions.ValidationError(error.message_dict) from None
        return Response(
            {"token": str(issued.plaintext), "expires_at": issued.expires_at},
            headers={"Cache-Control": "no-store"},
        )


def format_error(refusal: Refusal, request: HttpRequest) -> tuple[Any, str]:
    """Answer refusals as the guide does; one text for every credential that is no good."""
    if refusal.code is Code.NOT_AUTHENTICATED:
        text = _say_what_is_missing(read_header(request, "HTTP_AUTHORIZATION") or "")
    elif refusal.code is Code.INVALID_TOKEN:
        by_jwt = request.path.startswith("/jwt/")
        text = "Invalid or expired token" if by_jwt else "Invalid API key"
    else:
        text = _TEXTS.get(refusal.code, refusal.detail)
    return {"error": text}, "application/json"


def _say_what_is_missing(header: str) -> str:
    # There is no credential of ours in it, so this tells nothing of any.
    if not header.strip():
        return "Missing Authorization header"
    return f"Invalid authorization {'scheme' if ' ' in header.strip() else 'format'}"


def handle_exception(error: Exception, context: Any) -> Response | None:
    """Give DRF's own refusals the guide's form."""
    response = exception_handler(error, context)
    if response is None:
        return None
    if isinstance(error, exceptions.ValidationError):
        response.data = {"error": "Validation failed", "details": response.data}
    elif isinstance(error, exceptions.ParseError):
        response.data = {"error": "Validation failed", "details": {"body": [str(error.detail)]}}
    else:
        response.data = {"error": response.data["detail"]}
    return response


urlpatterns = [
    path("admin/", admin.site.urls),
    path("tools", Tools.as_view(), name="tools"),
    path("execute", Execute.as_view(), name="execute"),
    path("token", Exchange.as_view(), name="token"),
    path("jwt/execute", ExecuteByJWT.as_view(), name="execute-by-jwt"),
]
