"""The guarded views that the tests call. Each one that runs adds its path to ``CALLS``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied
from django.db import connection, transaction
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    JsonResponse,
    StreamingHttpResponse,
)
from django.utils.decorators import method_decorator
from django.utils.deprecation import MiddlewareMixin
from django.views import View
from rest_framework import exceptions, serializers
from rest_framework.authentication import (
    BaseAuthentication,
    BasicAuthentication,
    SessionAuthentication,
    get_authorization_header,
)
from rest_framework.decorators import (
    action,
    api_view,
    authentication_classes,
    permission_classes,
    throttle_classes,
)
from rest_framework.generics import GenericAPIView
from rest_framework.permissions import AllowAny, BasePermission, IsAdminUser, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import UserRateThrottle
from rest_framework.views import APIView, exception_handler
from rest_framework.viewsets import GenericViewSet, ModelViewSet, ViewSet

from project.models import Sample
from tokenauth.authentication import TokenAuthentication
from tokenauth.client_info import ClientInfo
from tokenauth.decorators import scopes_required, token_required
from tokenauth.models import AuditEvent
from tokenauth.permissions import HasScopes
from tokenauth.principal import ClientUser, Principal
from tokenauth.responses import Refusal
from tokenauth.scopes import ScopeSet

CALLS: list[str] = []
"""The paths of the views that ran."""


def describe(request: Any) -> dict[str, Any]:
    """Note the call; return what the view sees of its caller."""
    django_request = getattr(request, "_request", request)
    CALLS.append(request.path)
    auth = getattr(request, "auth", None)
    return {
        "client": auth.client_id if isinstance(auth, Principal) else None,
        "user": str(request.user),
        "tokenauth": getattr(django_request.tokenauth, "client_id", None)
        if hasattr(django_request, "tokenauth")
        else "nothing",
    }


# The three kinds of views. GET takes samples:read; POST on the DRF view samples:write.


class Guarded(APIView):
    authentication_classes = [TokenAuthentication]
    permission_classes = [HasScopes]
    required_scopes: Any = ["samples:read"]
    action_scopes: Any = {"post": ["samples:write"]}

    def get(self, request: Request) -> Response:
        return Response(describe(request))

    post = get


@scopes_required("samples:read")
def plain(request: HttpRequest) -> HttpResponse:
    return JsonResponse(describe(request))


@scopes_required("samples:read")
async def asynchronous(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    return JsonResponse({**describe(request), "auser": str(user)})


@token_required
def any_plain(request: HttpRequest) -> HttpResponse:
    return JsonResponse(describe(request))


@token_required
async def any_asynchronous(request: HttpRequest) -> HttpResponse:
    return JsonResponse(describe(request))


@scopes_required("samples:read", "samples:write")
def both_scopes(request: HttpRequest) -> HttpResponse:
    return JsonResponse(describe(request))


@method_decorator(scopes_required("samples:read"), name="dispatch")
class ClassBased(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return JsonResponse(describe(request))


@method_decorator(scopes_required("samples:read"), name="dispatch")
class AsyncClassBased(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        return JsonResponse(describe(request))


def unguarded(request: HttpRequest, rest: str = "") -> HttpResponse:
    return JsonResponse(describe(request))


@token_required
def anything(request: HttpRequest) -> HttpResponse:
    return JsonResponse(describe(request))


@api_view(["GET"])
@authentication_classes([TokenAuthentication])
@permission_classes([IsAuthenticated])
def function_based(request: Request) -> Response:
    return Response(describe(request))


# Views that go wrong, each after writing a group named like its path.

DRF_ERRORS: dict[str, Callable[[], Exception]] = {
    "401": exceptions.NotAuthenticated,
    "401-failed": exceptions.AuthenticationFailed,
    "403": exceptions.PermissionDenied,
    "404": Http404,
    "429": lambda: exceptions.Throttled(wait=3),
    "500": lambda: RuntimeError("broken on purpose"),
}
PLAIN_ERRORS: dict[str, Callable[[], Exception]] = {
    "403": PermissionDenied,
    "404": Http404,
    "500": lambda: RuntimeError("broken on purpose"),
}


class Raises(APIView):
    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]

    def get(self, request: Request, kind: str) -> Response:
        Group.objects.create(name=request.path)
        describe(request)
        if kind == "rollback":
            transaction.set_rollback(True)
            return Response({})
        raise DRF_ERRORS[kind]()


@token_required
def raises_plain(request: HttpRequest, kind: str) -> HttpResponse:
    Group.objects.create(name=request.path)
    describe(request)
    if kind in PLAIN_ERRORS:
        raise PLAIN_ERRORS[kind]()
    transaction.set_rollback(True)
    return HttpResponse(status=200 if kind == "rollback" else int(kind))


@token_required
async def raises_async(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("broken on purpose")


def events_of_another_connection() -> list[str]:
    """Return the events about requests that a second connection sees: what is committed."""
    seen: list[str] = []

    def look() -> None:
        try:
            rows = AuditEvent.objects.order_by("id").exclude(event__regex=r"^(token|security)\.")
            seen.extend(rows.values_list("event", flat=True))
        finally:
            connection.close()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return seen


def _look(request: Any) -> dict[str, Any]:
    return {"events": events_of_another_connection(), "atomic": connection.in_atomic_block}


class Looks(Guarded):
    def get(self, request: Request) -> Response:
        return Response(_look(request))


@token_required
def looks_plain(request: HttpRequest) -> HttpResponse:
    return JsonResponse(_look(request))


# Other authentication classes beside ours.


class ForeignAuthentication(BaseAuthentication):
    """Another package's bearer tokens: "Bearer foreign-…"; like simplejwt, with its own code."""

    def authenticate(self, request: Request) -> tuple[Any, str] | None:
        scheme, _, text = get_authorization_header(request).decode("latin-1").partition(" ")
        if scheme != "Bearer" or not text.startswith("foreign-"):
            return None
        if text == "foreign-" + "b" * 40:
            raise exceptions.AuthenticationFailed("The other token has expired.")
        if text == "foreign-" + "c" * 40:
            body: Any = {"detail": "Not one of ours.", "code": "token_not_valid"}
            raise exceptions.AuthenticationFailed(body, code="token_not_valid")
        return ClientUser("foreign"), text

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="foreign"'


class TokenThenForeign(APIView):
    authentication_classes = [TokenAuthentication, ForeignAuthentication]
    permission_classes: Any = [IsAuthenticated]

    def get(self, request: Request) -> Response:
        return Response(describe(request))


class Computed(APIView):
    """A foreign package's view, whose classes only a request can tell."""

    permission_classes: Any = []

    authentication_classes: Any = property(lambda self: [])

    def get(self, request: Request) -> Response:
        return Response()


class ForeignThenToken(TokenThenForeign):
    authentication_classes = [ForeignAuthentication, TokenAuthentication]


class OnlyForeign(TokenThenForeign):
    authentication_classes = [ForeignAuthentication]


class TokenOrBasic(TokenThenForeign):
    authentication_classes = [TokenAuthentication, BasicAuthentication]


class BasicOrToken(TokenThenForeign):
    authentication_classes = [BasicAuthentication, TokenAuthentication]


class SessionOrToken(TokenThenForeign):
    authentication_classes = [SessionAuthentication, TokenAuthentication]

    def post(self, request: Request) -> Response:
        return Response(describe(request))


class Optional(TokenThenForeign):
    authentication_classes = [TokenAuthentication]
    permission_classes = [AllowAny]


class Login(APIView):
    """Says 401 by itself to a caller without a token, for a reason of its own."""

    authentication_classes = [TokenAuthentication]
    permission_classes = [AllowAny]

    def get(self, request: Request) -> Response:
        raise exceptions.AuthenticationFailed("Wrong password.")


class Chosen(APIView):
    """Its authentication class is out of the middleware's sight."""

    authentication_classes = []
    permission_classes = [IsAuthenticated]

    def get_authenticators(self) -> list[BaseAuthentication]:
        return [TokenAuthentication()]

    def get(self, request: Request) -> Response:
        return Response(describe(request))


# What permissions are asked about.


class NoteSerializer(serializers.Serializer[Any]):
    text = serializers.CharField()


class NoteViewSet(ViewSet):
    authentication_classes = [TokenAuthentication]
    permission_classes = [HasScopes]
    required_scopes: Any = ["samples:read"]
    action_scopes: Any = {"create": ["samples:write"], "purge": ["samples:read", "samples:write"]}

    def list(self, request: Request) -> Response:
        return Response(describe(request))

    def create(self, request: Request) -> Response:
        return Response(describe(request))

    def retrieve(self, request: Request, pk: str) -> Response:
        return Response(describe(request))

    @action(detail=False, methods=["post"])
    def purge(self, request: Request) -> Response:
        return Response(describe(request))

    @action(detail=False, methods=["get"], required_scopes=["samples:write"])
    def export(self, request: Request) -> Response:
        return Response(describe(request))


class FormViewSet(GenericViewSet[Any]):
    """The browsable API draws a form for its POST, and asks the permissions for that."""

    authentication_classes = [TokenAuthentication]
    permission_classes: Any = [HasScopes]
    serializer_class = NoteSerializer
    required_scopes = ["samples:read"]
    action_scopes = {"create": ["samples:write"]}

    def list(self, request: Request) -> Response:
        return Response(describe(request))

    def create(self, request: Request) -> Response:
        return Response(describe(request))


class FormView(GenericAPIView[Any]):
    """OPTIONS describes its POST, and asks the permissions for that."""

    authentication_classes = [TokenAuthentication]
    permission_classes: Any = [HasScopes]
    serializer_class = NoteSerializer
    required_scopes = ["samples:read"]
    action_scopes = {"post": ["samples:write"]}

    def post(self, request: Request) -> Response:
        return Response(describe(request))


class ScopesOrStaff(APIView):
    authentication_classes = [TokenAuthentication, SessionAuthentication]
    permission_classes: Any = [HasScopes | IsAdminUser]
    required_scopes = ["samples:write"]

    def get(self, request: Request) -> Response:
        return Response(describe(request))


class StaffOrScopes(ScopesOrStaff):
    permission_classes: Any = [IsAdminUser | HasScopes]


class OwnRefusal(ScopesOrStaff):
    """Lets staff in without the scope, then refuses for a reason of its own."""

    def get(self, request: Request) -> Response:
        raise exceptions.PermissionDenied("Not on Sundays.")


class NotOnSundays(BasePermission):
    """Refuses everybody."""

    message = "Not on Sundays."

    def has_permission(self, request: Request, view: APIView) -> bool:
        return False


class NotOnThisSunday(BasePermission):
    """Refuses everybody every object."""

    message = "Not on Sundays."

    def has_object_permission(self, request: Request, view: APIView, obj: Any) -> bool:
        return False


class StaffNotOnSundays(ScopesOrStaff):
    """Lets staff past the first permission without the scope; the second refuses them."""

    permission_classes: Any = [HasScopes | IsAdminUser, NotOnSundays]


class StaffNotThisSunday(ScopesOrStaff):
    permission_classes: Any = [HasScopes | IsAdminUser, NotOnThisSunday]

    def get(self, request: Request) -> Response:
        self.check_object_permissions(request, "Sunday")
        return Response(describe(request))


class OwnRefusalWithForm(FormViewSet):
    """Refuses for a reason of its own, on a page that has a form."""

    def list(self, request: Request) -> Response:
        raise exceptions.PermissionDenied("Not on Sundays.")


class Writable(APIView):
    """Its second permission refuses everybody; the first, ours, is content."""

    authentication_classes = [TokenAuthentication]
    permission_classes: Any = [HasScopes, IsAdminUser]
    required_scopes = ["samples:read"]

    def get(self, request: Request) -> Response:
        return Response(describe(request))


# What belongs to whom.


class OncePerMinute(UserRateThrottle):
    rate = "1/min"


@api_view(["GET"])
@authentication_classes([TokenAuthentication])
@permission_classes([IsAuthenticated])
@throttle_classes([OncePerMinute])
def once_per_minute(request: Request) -> Response:
    return Response(describe(request))


class SampleSerializer(serializers.ModelSerializer[Sample]):
    class Meta:
        model = Sample
        fields = ["name"]


class MineViewSet(ModelViewSet[Sample]):
    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]
    serializer_class = SampleSerializer
    pagination_class = None

    def get_queryset(self) -> Any:
        return Sample.objects.filter(owner=str(self.request.user.pk))

    def perform_create(self, serializer: Any) -> None:
        serializer.save(owner=str(self.request.user.pk))


# What settings may name.


def shout(refusal: Refusal, request: HttpRequest) -> tuple[Any, str]:
    """Format a refusal as plain text."""
    return f"{refusal.status} {refusal.code.upper()} at {request.path}", "text/plain"


async def shout_later(refusal: Refusal, request: HttpRequest) -> tuple[str, str]:
    """No format: nobody awaits it."""
    return shout(refusal, request)


def shout_at_nobody(refusal: Refusal) -> tuple[str, str]:
    """No format: it is given the request, too."""
    return str(refusal.code), "text/plain"


class Shouter:
    """No format; its objects are."""

    def __call__(self, refusal: Refusal, request: HttpRequest) -> tuple[str, str]:
        """Shout."""
        return shout(refusal, request)


shouter = Shouter()


def end_the_line(refusal: Refusal, request: HttpRequest) -> tuple[str, str]:
    """No format: no header can be like that."""
    return "no", "text/plain\r\nX-Forged: yes"


def give_no_number(refusal: Refusal, request: HttpRequest) -> tuple[Any, str]:
    """No format: JSON has no such number."""
    return {"left": float("nan")}, "application/json"


def give_nothing(refusal: Refusal, request: HttpRequest) -> Any:
    """No format."""


def stumble(refusal: Refusal, request: HttpRequest) -> tuple[Any, str]:
    """Format nothing: a slip."""
    return request.headers["X-Nowhere"], "text/plain"


def put_what_is_no_json(refusal: Refusal, request: HttpRequest) -> tuple[Any, str]:
    """Format a refusal as what can't go out."""
    return {"detail": object()}, "application/json"


def plain_json_handler(error: Exception, context: dict[str, Any]) -> HttpResponseBase | None:
    """Answer errors as JsonResponse, as some projects do, never as DRF's Response."""
    response = exception_handler(error, context)
    if response is None:
        return None
    return JsonResponse({"error": str(error)}, status=response.status_code)


def hiding_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """Answer 404 to those who may not see a thing."""
    response = exception_handler(error, context)
    if response is not None:
        response.status_code = 404
    return response


def renaming_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """Answer errors in another shape than DRF's."""
    response = exception_handler(error, context)
    if response is not None:
        response.data = {"error": str(error)}
    return response


class Doorman(MiddlewareMixin):
    """A project's own middleware: notes whom ours has let in before the view runs."""

    def process_view(self, request: Any, *_args: Any) -> None:
        CALLS.append(f"{request.tokenauth.client_id} may pass")


class WordVerifier:
    """Knows one word, nothing else."""

    def __call__(self, text: str, *, client_info: ClientInfo, now: datetime) -> Principal | None:
        if text != "sesame":
            return None
        return Principal(
            client_id="ali",
            scopes=ScopeSet(["samples:read"]),
            token_id="",
            name="",
            expires_at=None,
            source="word",
            user=ClientUser("ali"),
        )


class BrokenVerifier:
    def __call__(self, text: str, *, client_info: ClientInfo, now: datetime) -> Principal | None:
        raise RuntimeError("broken on purpose")


# What a reviewer broke.


@api_view(["GET"])
@permission_classes([])
@scopes_required("samples:read")
def decorated_inside(request: Any) -> Response:
    """Have the decorator below ``@api_view``, where it gets DRF's request."""
    return Response({"client": request.auth.client_id})


class Probing(APIView):
    """Asks its permissions on the way, and ends for a reason of its own."""

    authentication_classes = [TokenAuthentication]
    permission_classes: Any = [HasScopes]
    required_scopes: Any = ["samples:read"]

    def get(self, request: Request, ending: str) -> Response:
        self.required_scopes = ["samples:write"]
        with contextlib.suppress(exceptions.PermissionDenied):
            self.check_permissions(request)
        errors: dict[str, Exception] = {
            "invalid": exceptions.ValidationError("Not like this."),
            "missing": exceptions.NotFound(),
            "denied": exceptions.PermissionDenied("My own reason."),
        }
        raise errors[ending]


class SaysNotAuthenticated(APIView):
    """Open to all, until it says that it isn't."""

    authentication_classes = [TokenAuthentication]
    permission_classes: Any = []

    def get(self, request: Request) -> Response:
        raise exceptions.NotAuthenticated


def whose(request: Any) -> HttpResponse:
    """Tell who asks, to caches too."""
    return HttpResponse(request.auth.client_id)


cacheable = token_required(whose)


class StreamingRefusal(APIView):
    """Answers errors in pieces."""

    authentication_classes = [TokenAuthentication]
    permission_classes: Any = [IsAuthenticated]

    def handle_exception(self, exc: Exception) -> Any:
        return StreamingHttpResponse(iter([b"no"]), status=401)
