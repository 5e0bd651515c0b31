"""The drf-spectacular extension: how views that take our tokens look in an OpenAPI schema.

The app's configuration imports this module if ``drf_spectacular`` is in INSTALLED_APPS;
drf-spectacular then finds the extension by itself. It is asked for each operation of a view with
our authentication class. It gets the view, but not the operation's description and responses,
which drf-spectacular collects elsewhere. So it adds an object to the operation that acts as a
security requirement, and a postprocessing hook finds this object and completes the operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent
from drf_spectacular.settings import spectacular_settings

from tokenauth.conf import Transport, get_settings
from tokenauth.openapi.access import Access
from tokenauth.openapi.refusals import JSON, document_responses, register_component


class TokenAuthenticationScheme(OpenApiAuthenticationExtension):
    """Describes views with ``TokenAuthentication``, or a subclass, in the schema.

    There is one security scheme for each of ``TRANSPORTS``, and each of them is enough. An
    extension of the project for its own subclass comes first.
    """

    target_class = "tokenauth.authentication.TokenAuthentication"
    match_subclasses = True
    priority = -1

    def __init__(self, target: Any) -> None:
        super().__init__(target)  # type: ignore[no-untyped-call]
        self.name = list(_header_schemes())

    def get_security_definition(self, auto_schema: AutoSchema) -> list[JSON]:
        """Return the security schemes of ``TRANSPORTS``, in the order of ``name``."""
        return list(_header_schemes().values())

    def get_security_requirement(self, auto_schema: AutoSchema) -> list[dict[str, list[Any]]]:
        """Return the alternatives in which an operation takes a token; each carries our mark."""
        _add_hook()
        # Before drf-spectacular does: it would take those of two subclasses for different ones.
        for name, scheme in _header_schemes().items():
            register_component(
                auto_schema.registry, name, ResolvedComponent.SECURITY_SCHEMA, scheme
            )
        access = Access.of(auto_schema.view, auto_schema.method)
        schemes = [*self.name, *_register_query_scheme(auto_schema)]
        operation = _Operation(access=access, responses=document_responses(auto_schema, access))
        requirements: list[dict[str, list[Any]]] = [
            _Requirement({scheme: roles}, operation)
            for scheme in schemes
            for roles in _roles(access)
        ]
        if not auto_schema.view.get_permissions():
            requirements.append({})  # drf-spectacular knows this of AllowAny only.
        return requirements


@dataclass(frozen=True, kw_only=True)
class _Operation:
    """What the hook adds to an operation."""

    access: Access
    responses: Mapping[str, JSON]
    """Status → response. Those that the project documents itself take precedence."""


class _Requirement(dict[str, list[Any]]):
    """A security requirement that carries what the hook adds to its operation."""

    def __init__(self, requirement: dict[str, list[Any]], operation: _Operation) -> None:
        super().__init__(requirement)
        self.operation = operation


def document_refusals(result: JSON, generator: Any, request: Any, public: bool) -> JSON:  # noqa: FBT001 - drf-spectacular's signature
    """Add scopes and refusals to the operations that take our tokens: a postprocessing hook.

    It needs no entry in POSTPROCESSING_HOOKS, and doesn't change other operations.
    """
    for operations in result["paths"].values():
        for operation in operations.values():
            security = operation.get("security", ())
            marks = [one.operation for one in security if isinstance(one, _Requirement)]
            if marks:
                alternatives = [dict(one) for one in security]
                operation["security"] = [
                    one for place, one in enumerate(alternatives) if one not in alternatives[:place]
                ]
                _amend(operation, marks[0])
    return result


def _amend(operation: JSON, added: _Operation) -> None:
    access = added.access
    if access.text:
        description = operation.get("description")
        operation["description"] = f"{description}\n\n{access.text}" if description else access.text
    if access.scopes:
        key = "x-required-any-scope" if access.is_any_enough else "x-required-scopes"
        operation.setdefault(key, list(access.scopes))
    documented = {**added.responses, **operation["responses"]}
    operation["responses"] = dict(sorted(documented.items()))


def _add_hook() -> None:
    """Have drf-spectacular call our hook, before those that rebuild the schema.

    Called while a schema is generated: settings that apply to one schema only count too.
    """
    settings: Any = spectacular_settings
    if document_refusals not in settings.POSTPROCESSING_HOOKS:
        settings.POSTPROCESSING_HOOKS = [document_refusals, *settings.POSTPROCESSING_HOOKS]


# Security schemes.


def _header_schemes() -> dict[str, JSON]:
    """Return name → security scheme for ``TRANSPORTS``."""
    return dict(map(_header_scheme, get_settings().transports))


def _header_scheme(transport: Transport) -> tuple[str, JSON]:
    name = "_".join(filter(None, ("tokenauth", transport.header, transport.scheme))).lower()
    if not transport.scheme:
        return name, {"type": "apiKey", "in": "header", "name": transport.header}
    if transport.header.lower() == "authorization":
        return name, {"type": "http", "scheme": transport.scheme.lower()}
    # OpenAPI knows schemes in the Authorization header only.
    text = f"Write `{transport.scheme}` and a space before the token."
    return name, {
        "type": "apiKey",
        "in": "header",
        "name": transport.header,
        "description": text,
    }


def _register_query_scheme(auto_schema: AutoSchema) -> list[str]:
    """Register the parameter of ``QUERY_PARAMS`` for the operation's path; return its scheme."""
    parameter = get_settings().query_params.get(auto_schema.path)
    if parameter is None or auto_schema.method != "GET":
        return []
    name = f"tokenauth_query.{parameter.replace('~', '.')}"
    scheme = {"type": "apiKey", "in": "query", "name": parameter}
    register_component(auto_schema.registry, name, ResolvedComponent.SECURITY_SCHEMA, scheme)
    return [name]


def _roles(access: Access) -> list[list[str]]:
    """Return the alternatives of what to list beside a scheme.

    OpenAPI 3.0 allows nothing there for schemes like ours; since 3.1 there may be roles.
    """
    scopes = access.scopes or ()
    if not scopes or access.has_alternative or spectacular_settings.OAS_VERSION.startswith("3.0"):
        return [[]]
    return [[scope] for scope in scopes] if access.is_any_enough else [list(scopes)]
