"""nginx and Caddy, as ``docs/gateways.md`` configures them, in front of a service.

Each runs where TOKENAUTH_TEST_NGINX or TOKENAUTH_TEST_CADDY names its program.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.gateways import PROGRAMS, Answer, Gateway, Service, documented
from tests.mcp_servers import Server
from tests.ports import free_port

pytestmark = [
    pytest.mark.gateways,
    pytest.mark.skipif(
        not any(PROGRAMS.values()), reason="set TOKENAUTH_TEST_NGINX, TOKENAUTH_TEST_CADDY"
    ),
]

CALLERS = 50
FORGED = {
    f"X{mark}Auth{mark}{name}": "root"
    for mark in "-_"
    for name in ("Client", "User", "Scopes", f"Token{mark}Id")
}
"""Headers that only a gateway may send. A service may take ``_`` for ``-``."""
TOKENS: dict[str, dict[str, Any]] = {
    "reader": {"scopes": ["samples:read"]},
    "writer": {"scopes": ["samples:*"], "user": "boss"},
    "useless": {"scopes": ["mcp:use"]},
    "fleeting": {"scopes": ["samples:read"]},
    "slow": {"scopes": ["samples:read"], "rate": "2/m"},
    "local": {"scopes": ["samples:read"], "allowed_networks": ["127.0.0.0/8"]},
    "remote": {"scopes": ["samples:read"], "allowed_networks": ["192.0.2.0/24"]},
    "odd": {"scopes": ["samples:read"], "client_id": "Zoë 100%"},
    **{f"caller{number}": {"scopes": ["samples:read"]} for number in range(CALLERS)},
}
CHALLENGE = 'Bearer realm="api"'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve the site that has the tokens."""
    port = free_port()
    server = Server(
        tmp_path_factory.mktemp("site"),
        {name: dict(options) for name, options in TOKENS.items()},
        settings="tests.gateway_settings",
        command=[
            *(sys.executable, "-m", "uvicorn", "--no-proxy-headers", "--port", str(port)),
            "project.asgi:application",
        ],
        ALLOWED_HOSTS="auth.internal",
    )
    server.port = port  # type: ignore[attr-defined]
    server.wait()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.stop()


@pytest.fixture(scope="module", params=[name for name, program in PROGRAMS.items() if program])
def gateway(
    request: pytest.FixtureRequest, site: Any, service: Service, tmp_path_factory: Any
) -> Iterator[Gateway]:
    """Serve the documented configuration."""
    folder = tmp_path_factory.mktemp("gateway") / request.param
    gateway = Gateway(request.param, folder, site=site.port, service=service.port)
    yield gateway
    gateway.stop()


@pytest.fixture(autouse=True)
def _nothing_seen(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("service").seen.clear()


def bearer(site: Server, name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {site.tokens[name]}"}


def last_row(site: Server) -> tuple[Any, ...]:
    """Return event, reason, client, method, path and address of the last row."""
    [row] = site.execute(
        "SELECT event, reason, client_id, method, path, ip FROM tokenauth_auditevent "
        "ORDER BY id DESC LIMIT 1"
    )
    return tuple(row)


def test_a_request_is_accepted(gateway: Gateway, site: Server) -> None:
    answer = gateway.ask("/lab/7?page=2", **bearer(site, "writer"))
    assert answer.status == 200
    assert (answer.json()["method"], answer.json()["path"]) == ("GET", "/lab/7?page=2")
    assert answer.values("X-Auth-Client") == ["writer"]
    assert answer.values("X-Auth-User") == ["boss"]
    assert answer.values("X-Auth-Scopes") == ["samples:*"]
    assert answer.values("X-Auth-Token-Id") == [site.ids["writer"]]
    assert last_row(site) == ("auth.accepted", "", "writer", "GET", "/lab/7", "127.0.0.1")


def test_the_service_never_gets_the_token(gateway: Gateway, site: Server) -> None:
    for headers in (bearer(site, "reader"), {"X-Api-Key": site.tokens["reader"]}):
        answer = gateway.ask("/lab/", **headers)
        assert answer.status == 200
        assert site.tokens["reader"] not in answer.body.decode()


def test_names_are_encoded(gateway: Gateway, site: Server) -> None:
    answer = gateway.ask("/lab/", **bearer(site, "odd"))
    assert answer.values("X-Auth-Client") == ["Zo%C3%AB 100%25"]
    assert answer.values("X-Auth-User") == ["-"]


@pytest.mark.parametrize(
    ("headers", "challenge", "reason"),
    [
        ({}, CHALLENGE, "missing"),
        ({"Authorization": "Bearer wrong"}, f'{CHALLENGE}, error="invalid_token"', "unknown"),
        ({"X-Api-Key": ""}, f'{CHALLENGE}, error="invalid_token"', "malformed"),
    ],
    ids=["missing", "wrong", "malformed"],
)
def test_a_request_is_refused(
    headers: dict[str, str],
    challenge: str,
    reason: str,
    gateway: Gateway,
    site: Server,
    service: Service,
) -> None:
    answer = gateway.ask("/lab/7", method="PUT", **headers)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, challenge)
    assert "code" in answer.json()
    assert service.seen == []
    assert last_row(site) == ("auth.rejected", reason, "", "PUT", "/lab/7", "127.0.0.1")


@pytest.mark.parametrize(
    ("method", "name", "scope"),
    [
        ("GET", "useless", "samples:read"),
        ("HEAD", "useless", "samples:read"),
        ("POST", "reader", "samples:write"),
        ("OPTIONS", "reader", "samples:write"),
        ("PROPFIND", "reader", "samples:write"),
    ],
)
def test_the_scope_is_refused(
    method: str, name: str, scope: str, gateway: Gateway, site: Server, service: Service
) -> None:
    answer = gateway.ask("/lab/7", method=method, **bearer(site, name))
    assert answer.status == 403
    assert answer.headers["www-authenticate"] == (
        f'{CHALLENGE}, error="insufficient_scope", scope="{scope}"'
    )
    assert service.seen == []
    expected = ("access.denied", "insufficient_scope", name, method, "/lab/7", "127.0.0.1")
    assert last_row(site) == expected


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"])
def test_other_methods_are_accepted_too(
    method: str, gateway: Gateway, site: Server, service: Service
) -> None:
    assert gateway.ask("/lab/7", method=method, **bearer(site, "writer")).status == 200
    assert [seen["method"] for seen in service.seen] == [method]


def test_options_without_a_token_are_refused(gateway: Gateway, service: Service) -> None:
    headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    assert gateway.ask("/lab/7", method="OPTIONS", **headers).status == 401
    assert service.seen == []


def test_a_token_is_revoked_meanwhile(gateway: Gateway, site: Server) -> None:
    name = f"caller{CALLERS - 1 - ['nginx', 'caddy'].index(gateway.name)}"
    assert gateway.ask("/lab/", **bearer(site, name)).status == 200
    site.run("manage.py", "tokenauth", "revoke", site.ids[name])
    assert gateway.ask("/lab/", **bearer(site, name)).status == 401


def test_the_client_can_not_choose_the_scope(
    gateway: Gateway, site: Server, service: Service
) -> None:
    for query in ("any=1", "scope=mcp:use", "scope=mcp:use&any=1", "/?any=1", "x#?any=1"):
        assert gateway.ask(f"/lab/?{query}", **bearer(site, "useless")).status == 403
        assert gateway.ask(f"/lab/%3f{query}", **bearer(site, "useless")).status in {403, 400}
    assert service.seen == []


def test_the_client_can_not_name_itself(gateway: Gateway, site: Server) -> None:
    answer = gateway.ask("/lab/", **bearer(site, "reader"), **FORGED)
    assert answer.values("X-Auth-Client") == ["reader"]
    assert answer.values("X-Auth-User") == ["-"]
    assert "root" not in answer.body.decode()


def test_the_client_can_not_drop_its_name(gateway: Gateway, site: Server) -> None:
    # Proxies delete the headers that ``Connection`` names.
    names = ("X-Auth-Client", "X-Auth-User", "X-Auth-Scopes", "X-Auth-Token-Id")
    dropped = [*(name.lower() for name in names), "X-Forwarded-For", "X-Forwarded-Uri"]
    hop_by_hop = {"Connection": ", ".join(dropped)}
    answer = gateway.ask("/lab/", **bearer(site, "writer"), **hop_by_hop)
    assert answer.status == 200
    expected = ["writer", "boss", "samples:*", site.ids["writer"]]
    assert [answer.values(name) for name in names] == [[value] for value in expected]
    assert last_row(site) == ("auth.accepted", "", "writer", "GET", "/lab/", "127.0.0.1")


def test_a_request_for_a_websocket_is_verified(gateway: Gateway, site: Server) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert gateway.ask("/lab/", **upgrade).status == 401
    assert last_row(site)[:2] == ("auth.rejected", "missing")
    answer = gateway.ask("/lab/", **upgrade, **bearer(site, "reader"))
    assert (answer.status, answer.values("X-Auth-Client")) == (200, ["reader"])
    # The documented configuration of nginx doesn't pass the header on.
    assert answer.values("Upgrade") == ([] if gateway.name == "nginx" else ["websocket"])


def test_nor_on_a_public_path(gateway: Gateway) -> None:
    answer = gateway.ask("/public/", **FORGED)
    assert answer.status == 200
    assert "root" not in answer.body.decode()


def test_the_client_can_not_choose_what_is_audited(gateway: Gateway, site: Server) -> None:
    headers = {
        "X-Original-URI": "/other",
        "X-Original-Method": "DELETE",
        "X-Forwarded-Uri": "/other",
        "X-Forwarded-Method": "DELETE",
        "X-Forwarded-For": "192.0.2.7",
        "X-Real-Ip": "192.0.2.7",
        "Forwarded": "for=192.0.2.7",
    }
    assert gateway.ask("/lab/", **bearer(site, "reader"), **headers).status == 200
    assert last_row(site) == ("auth.accepted", "", "reader", "GET", "/lab/", "127.0.0.1")


def test_networks(gateway: Gateway, site: Server) -> None:
    assert gateway.ask("/lab/", **bearer(site, "local")).status == 200
    forwarded = {**bearer(site, "remote"), "X-Forwarded-For": "192.0.2.7"}
    assert gateway.ask("/lab/", **forwarded).status == 401
    assert last_row(site)[1] == "wrong_network"


def test_public_paths_are_open(gateway: Gateway, service: Service) -> None:
    assert gateway.ask("/public/page?a=b").status == 200
    assert [seen["path"] for seen in service.seen] == ["/public/page?a=b"]


@pytest.mark.parametrize(
    "target",
    [
        "/public/../lab/",
        "/public/%2e%2e/lab/",
        "/public/%2E%2e/lab/",
        "/public/..%2flab/",
        "/public%2f..%2flab/",
        "/public/%252e%252e/lab/",
        "/public/..%252flab/",
        "/public/./../lab/",
        "/public//../lab/",
        "//public/../lab/",
        "/public/x/../../lab/",
        "/public/..;/lab/",
        "/public/..\\lab/",
        "/public/%5c..%5clab/",
        "/lab/../public/../lab/",
        "/lab/../public/",
        "/lab/%2e%2e/public/",
        "/lab/..%2fpublic/",
        "//lab/",
        "/public",
        "/PUBLIC/",
        "/public%00/../lab/",
        "http://api.example/public/../lab/",
    ],
)
def test_paths_have_one_meaning(target: str, gateway: Gateway, service: Service) -> None:
    answer = gateway.ask(target)
    assert answer.status in {200, 301, 308, 400, 401}
    # What is open stays under /public/, however the service reads it.
    for seen in service.seen:
        assert seen["path"].startswith("/public/")
        assert not any(odd in seen["path"].lower() for odd in ("/..", "//", "\\", "%2f", "%2e"))
    assert (answer.status == 200) == bool(service.seen)


@pytest.mark.parametrize("target", ["/_verify", "/_verify?scope=mcp:use", "/auth/verify/?any=1"])
def test_the_endpoint_is_not_open(
    target: str, gateway: Gateway, site: Server, service: Service
) -> None:
    assert gateway.ask(target).status in {401, 404}
    assert gateway.ask(target, **bearer(site, "useless")).status in {403, 404}
    assert service.seen == []


def test_too_many_requests(gateway: Gateway, site: Server, service: Service) -> None:
    answers = [gateway.ask("/lab/", **bearer(site, "slow")) for _ in range(6)]
    throttled = [answer for answer in answers if answer.status == 429]
    assert len(throttled) >= 2  # A window may end meanwhile.
    assert {answer.status for answer in answers} <= {200, 429}
    assert all(0 < int(answer.headers["retry-after"]) <= 60 for answer in throttled)
    assert throttled[0].json()["code"] == "throttled"
    assert len(service.seen) == len(answers) - len(throttled)


def test_an_outage_of_the_audit(gateway: Gateway, site: Server, service: Service) -> None:
    site.execute("ALTER TABLE tokenauth_auditevent RENAME TO away")
    try:
        answer = gateway.ask("/lab/", **bearer(site, "reader"))
    finally:
        site.execute("ALTER TABLE away RENAME TO tokenauth_auditevent")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["code"] == "unavailable"
    assert service.seen == []
    assert gateway.ask("/lab/", **bearer(site, "reader")).status == 200


def test_no_answer_reaches_another_caller(gateway: Gateway, site: Server, service: Service) -> None:
    # The last two are revoked by a test.
    names = [f"caller{number}" for number in range(CALLERS - 2)] + ["", "useless"]

    def call(name: str) -> tuple[str, Answer]:
        return name, gateway.ask(f"/lab/{name}", **(bearer(site, name) if name else {}))

    with ThreadPoolExecutor(CALLERS) as pool:
        answers = list(pool.map(call, names * 4))
    for name, answer in answers:
        expected = {"": 401, "useless": 403}.get(name, 200)
        assert answer.status == expected, answer.body
        if expected == 200:
            assert answer.values("X-Auth-Client") == [name]
            assert answer.values("X-Auth-Token-Id") == [site.ids[name]]
            assert answer.json()["path"] == f"/lab/{name}"
    assert len(service.seen) == 4 * (CALLERS - 2)


@pytest.fixture(params=[name for name, program in PROGRAMS.items() if program])
def make_gateway(
    request: pytest.FixtureRequest, site: Any, service: Service, tmp_path: Path
) -> Iterator[Any]:
    """Serve another configuration: ``make_gateway(replace=(old, new))``."""
    made = []

    def make(*, replace: tuple[str, str] = ("", ""), port: int = 0) -> Gateway:
        text = documented(request.param)
        assert replace[0] in text
        gateway = Gateway(
            request.param,
            tmp_path / request.param,
            site=port or site.port,
            service=service.port,
            configuration=text.replace(*replace) if replace[0] else text,
        )
        made.append(gateway)
        return gateway

    yield make
    for gateway in made:
        gateway.stop()


def test_without_a_scope_nothing_is_accepted(
    make_gateway: Any, site: Server, service: Service, request: pytest.FixtureRequest
) -> None:
    name = "nginx" if "nginx" in request.node.name else "caddy"
    query = "?scope=$required_scope" if name == "nginx" else "?scope={required_scope}"
    gateway = make_gateway(replace=(query, ""))
    answer = gateway.ask("/lab/?any=1&scope=samples:read", **bearer(site, "writer"))
    assert answer.status == 403
    assert answer.headers["www-authenticate"] == f'{CHALLENGE}, error="insufficient_scope"'
    assert last_row(site)[:2] == ("access.denied", "no_scopes_declared")
    assert service.seen == []


def test_it_fails_closed(make_gateway: Any, site: Server, service: Service) -> None:
    gateway = make_gateway(port=free_port())
    answer = gateway.ask("/lab/", **bearer(site, "writer"))
    assert answer.status == 503
    assert service.seen == []
    assert gateway.ask("/public/").status == 200


def test_a_redirect_is_no_consent(make_gateway: Any, site: Server, service: Service) -> None:
    gateway = make_gateway(replace=("/auth/verify/?", "/auth/verify?"))
    answer = gateway.ask("/lab/", **bearer(site, "writer"))
    assert answer.status in {301, 503}
    assert service.seen == []
