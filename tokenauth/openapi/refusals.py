"""How operations refuse tokens: the responses of a schema, with the bodies that ERROR_FORMAT makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from django.http import HttpRequest, HttpResponse
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ComponentIdentity, ComponentRegistry, ResolvedComponent

from tokenauth import responses
from tokenauth.authentication import TokenAuthentication
from tokenauth.exceptions import Reason, Refused, Throttled, Unavailable
from tokenauth.openapi.access import Access
from tokenauth.throttling import TokenRateThrottle

JSON = dict[str, Any]

Error = Refused | Unavailable

_UNAUTHORIZED = (Refused(Reason.MISSING), Refused(Reason.UNKNOWN))
_USER_REQUIRED = Refused(Reason.USER_REQUIRED)
_THROTTLED = (Throttled(Reason.TOKEN_RATE, retry_after=42, excess=1),)
_UNAVAILABLE = (Unavailable(),)
_SCOPE_MISSING = Refused(Reason.INSUFFICIENT_SCOPE, scopes=("scope",))
_ALL: tuple[Error, ...] = (
    *_UNAUTHORIZED,
    _SCOPE_MISSING,
    _USER_REQUIRED,
    *_THROTTLED,
    *_UNAVAILABLE,
)
"""One error of each code."""
_DESCRIPTIONS = {
    HTTPStatus.UNAUTHORIZED: "The request has no API token, or one that is not valid.",
    HTTPStatus.FORBIDDEN: "The API token does not permit this operation.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests. Retry after the given number of seconds.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Tokens can't be checked at the moment. Retry later.",
}
_HEADERS: dict[str, JSON] = {
    "WWW-Authenticate": {
        "description": "The challenge (RFC 6750).",
        "schema": {"type": "string"},
    },
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}},
}
_PAGES = {"api", "admin", "html"}
"""DRF's renderers for people."""
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number"}


def document_responses(auto_schema: AutoSchema, access: Access) -> dict[str, JSON]:
    """Return status → response for the refusals of an operation."""
    view = auto_schema.view
    # A subclass with a method of its own may refuse with a body of its own.
    others = any(
        type(one).authenticate is not TokenAuthentication.authenticate
        for one in view.get_authenticators()
    )
    documented = {
        "401": _document(auto_schema, _UNAUTHORIZED, may_be_foreign=others),
        # Each token may have a rate of its own, even without TOKEN_RATE.
        "429": _document(auto_schema, _THROTTLED, may_be_foreign=_has_other_throttles(view)),
        "503": _document(auto_schema, _UNAVAILABLE),
    }
    if forbidden := _forbidden(access):
        documented["403"] = _document(auto_schema, forbidden, may_be_foreign=access.others_forbid)
    elif access.others_forbid:
        documented["403"] = {"description": "A permission of the view refuses the request."}
    return documented


def _has_other_throttles(view: Any) -> bool:
    """Return whether a throttle of another kind may refuse a request to ``view``."""
    try:
        throttles = view.get_throttles()
    except Exception:  # noqa: BLE001 - the project's own code runs here
        # It may read what only a request has, and drf-spectacular itself never calls it.
        return True
    return any(not isinstance(one, TokenRateThrottle) for one in throttles)


def _forbidden(access: Access) -> list[Refused]:
    """Return how our permissions refuse a valid token."""
    forbidden = []
    if access.scopes is not None:
        reason = Reason.INSUFFICIENT_SCOPE if access.scopes else Reason.NO_SCOPES_DECLARED
        forbidden.append(Refused(reason, scopes=access.scopes))
    if access.needs_user:
        forbidden.append(_USER_REQUIRED)
    if access.are_scopes_in_query:
        forbidden.append(_SCOPE_MISSING)
    return forbidden


def _document(
    auto_schema: AutoSchema, errors: Sequence[Error], *, may_be_foreign: bool = False
) -> JSON:
    """Return the response to ``errors``, which have one status: a component if all views share it.

    ``may_be_foreign`` says that another class of the view may answer with this status too.
    """
    registry = auto_schema.registry
    answers = {error.code.value: responses.render(error, _make_request()) for error in errors}
    *_, last = answers.values()
    schema = _register_error(registry)
    content: dict[str, JSON] = {}
    for code, answer in answers.items():
        media = content.setdefault(_media_type(answer), {"schema": schema, "examples": {}})
        media["examples"][code] = {"value": _body(answer)}
    others = _other_media_types(auto_schema.view) - content.keys()
    if may_be_foreign:
        content = {kind: {**media, "schema": _or_any(schema)} for kind, media in content.items()}
    for media_type in sorted(others):
        content[media_type] = {"schema": _or_any(schema) if may_be_foreign else schema}
    response = {
        "description": _DESCRIPTIONS[HTTPStatus(last.status_code)],
        "headers": {
            name: {**header, "example": last[name]}
            for name, header in _HEADERS.items()
            if name in last
        },
        "content": content,
    }
    if may_be_foreign or others or last.status_code == HTTPStatus.FORBIDDEN:
        return response
    name = f"TokenAuth{last.status_code}"
    return register_component(registry, name, ResolvedComponent.RESPONSE, response)


def _register_error(registry: ComponentRegistry) -> JSON:
    """Return a reference to the schema of the bodies that ``ERROR_FORMAT`` makes of all errors."""
    bodies = [_body(responses.render(error, _make_request())) for error in _ALL]
    return register_component(
        registry, "TokenAuthError", ResolvedComponent.SCHEMA, _schema_of(bodies)
    )


class _Ours(ComponentIdentity):
    """What our components stand for: drf-spectacular warns of another component of their name.

    The security schemes of our class and of a project's subclasses are the same ones.
    """

    def __init__(self) -> None:
        super().__init__(TokenAuthentication)  # type: ignore[no-untyped-call]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Ours) or (
            isinstance(other, type) and issubclass(other, TokenAuthentication)
        )

    __hash__ = None  # type: ignore[assignment]


def register_component(registry: ComponentRegistry, name: str, kind: str, schema: JSON) -> JSON:
    """Register a component unless it is there; return a reference to it."""
    component = ResolvedComponent(name=name, type=kind, schema=schema, object=_Ours())
    registry.register_on_missing(component)
    return component.ref


def _make_request() -> HttpRequest:
    """Return a minimal request, for error formats that read the request."""
    request = HttpRequest()
    request.method = "GET"
    request.path = request.path_info = "/"
    request.META = {"SERVER_NAME": "localhost", "SERVER_PORT": "80"}
    return request


def _media_type(answer: HttpResponse) -> str:
    return answer["Content-Type"].partition(";")[0].strip()


def _other_media_types(view: Any) -> set[str]:
    """Return the media types of DRF's renderers for refusals, except JSON and pages for people."""
    kinds = [one for one in view.get_renderers() if one.format not in {"json", *_PAGES}]
    return {one.media_type.partition(";")[0] for one in kinds if one.media_type}


def _body(answer: HttpResponse) -> Any:
    """Return the body as a client reads it: the value of JSON, or the text."""
    try:
        return json.loads(answer.content)
    except ValueError:
        return answer.content.decode(errors="replace")


def _or_any(schema: JSON) -> JSON:
    return {"anyOf": [schema, {"description": "The body of another class of the view."}]}


def _schema_of(values: Sequence[Any]) -> JSON:
    """Return a schema that all of ``values``, read from JSON, conform to."""
    kinds = {type(value) for value in values}
    if kinds == {dict}:
        names = sorted({name for value in values for name in value})
        present = {name: [value[name] for value in values if name in value] for name in names}
        required = [name for name in names if len(present[name]) == len(values)]
        schema = {
            "type": "object",
            "properties": {name: _schema_of(found) for name, found in present.items()},
        }
        return {**schema, "required": required} if required else schema
    if kinds == {list}:
        return {"type": "array", "items": _schema_of([item for value in values for item in value])}
    return {"type": _TYPES[kinds.pop()]} if len(kinds) == 1 and kinds <= _TYPES.keys() else {}
