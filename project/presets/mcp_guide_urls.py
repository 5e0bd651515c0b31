"""The URLs and views of the guide's server."""

from __future__ import annotations

import re
from typing import Any, cast

from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest
from django.urls import path
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
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
    """A tool's name. DRF's own field would also accept a number."""

    def to_internal_value(self, data: Any) -> str:
        """Return the name. Raises ValidationError for anything but a string."""
        if not isinstance(data, str):
            self.fail("invalid")
        return str(super().to_internal_value(data))


class Seconds(serializers.IntegerField):
    """An integer, or its ASCII digits as a string. DRF's own field would also accept "3_0" and "٣"."""

    def to_internal_value(self, data: Any) -> int:
        """Return the number. Raises ValidationError for any other value."""
        if isinstance(data, str) and not re.fullmatch("[0-9]+", data):
            self.fail("invalid")
        return int(super().to_internal_value(data))


class ToolExecution(serializers.Serializer[Any]):
    """The body of ``/execute``. Unknown fields are refused."""

    # `$` would also accept a trailing line feed.
    tool = ToolName(
        r"\A[a-zA-Z0-9_-]+\Z", trim_whitespace=False, error_messages={"invalid": "Invalid value."}
    )
    parameters = serializers.DictField()
    timeout = Seconds(min_value=1, max_value=300, default=30)

    def to_internal_value(self, data: Any) -> Any:
        """Return the validated values. Raises ValidationError for unknown fields too."""
        errors = {}
        if isinstance(data, dict):
            errors = {
                # A JSON key such as "\\ud800" can't be encoded in the answer as UTF-8.
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
    """Run a tool. Replace this function with your own tools."""
    return "Tool executed"


class GuideView(APIView):
    """Base class: takes and returns JSON, and accepts any valid key."""

    authentication_classes = [TokenAuthentication]
    permission_classes: Any = [IsAuthenticated]
    parser_classes = [BodyParser]
    renderer_classes = [JSONRenderer]


class Tools(GuideView):
    """The list of tools."""

    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request) -> Response:
        """Return the list."""
        return Response({"tools": TOOLS})


class Execute(GuideView):
    """Run a tool for any valid key, as the guide does."""

    @extend_schema(request=ToolExecution, responses=OpenApiTypes.OBJECT)
    def post(self, request: Request) -> Response:
        """Run a tool."""
        execution = ToolExecution(data=request.data)
        execution.is_valid(raise_exception=True)
        return Response({"status": "success", "result": run_tool(**execution.validated_data)})


class ExecuteByJWT(Execute):
    """Run a tool for tokens that have at least one of ``required_scopes``."""

    permission_classes = [HasAnyScope]
    required_scopes = ["tools:execute"]


class Exchange(GuideView):
    """Exchange a key for a JWT."""

    @extend_schema(request=None, responses=OpenApiTypes.OBJECT)
    def post(self, request: Request) -> Response:
        """Return a JWT that expires after five minutes."""
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
    """Return a refusal in the guide's form.

    Every rejected key gets the same text. A client that could tell an unknown key from a revoked
    one could sort stolen keys.
    """
    if refusal.code in {Code.NOT_AUTHENTICATED, Code.INVALID_TOKEN}:
        by_jwt = request.path.startswith("/jwt/")
        text = _find_fault(read_header(request, "HTTP_AUTHORIZATION") or "") or (
            "Invalid or expired token" if by_jwt else "Invalid API key"
        )
    else:
        text = _TEXTS.get(refusal.code, refusal.detail)
    return {"error": text}, "application/json"


def _find_fault(header: str) -> str:
    """Return why the Authorization header carries no key; "" if it carries one.

    The guide splits the header at its first space. Servers remove the white space around it.
    """
    header = header.strip(" \t")
    scheme, space, _ = header.partition(" ")
    if not header:
        return "Missing Authorization header"
    if not space:
        return "Invalid authorization format"
    return "" if scheme.lower() == "bearer" else "Invalid authorization scheme"


def handle_exception(error: Exception, context: Any) -> Response | None:
    """Return the answer to an error of DRF's own in the guide's form."""
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
