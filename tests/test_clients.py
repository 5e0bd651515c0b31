"""The auth objects for callers, with real servers at the other end."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

from tests.conftest import Issue
from tokenauth import services
from tokenauth.clients import TokenError
from tokenauth.clients import httpx as for_httpx
from tokenauth.clients import requests as for_requests
from tokenauth.clients.source import is_confidential, same_origin
from tokenauth.models import AuditEvent

TOKEN = "tka_0123456789ab_" + "S3cret" * 6 + "AB"
OTHER = "tka_0123456789ab_" + "N3wone" * 6 + "AB"
HEADERS = ["Authorization: Bearer", "X-Api-Key", "apitoken"]
WHOAMI = "/api/v1/whoami/"
# Made once: reading the certificates of all authorities takes longer than any test here.
TLS = ssl.create_default_context()


# The three kinds of callers.


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    sent: dict[str, str]
    """The headers of the last request, as its library tells them."""


def with_requests(auth: Any, url: str, method: str = "GET", **options: Any) -> Answer:
    with requests.Session() as session:
        session.auth = auth
        answer = session.request(method, url, timeout=60, **options)
        sent = {name: str(value) for name, value in answer.request.headers.items()}
        return Answer(answer.status_code, answer.text, sent)


def with_httpx(auth: Any, url: str, method: str = "GET", **options: Any) -> Answer:
    with httpx.Client(auth=auth, follow_redirects=True, timeout=60, verify=TLS) as client:
        answer = client.request(method, url, **_named(options))
        return Answer(answer.status_code, answer.text, _raw(answer.request))


def with_async_httpx(auth: Any, url: str, method: str = "GET", **options: Any) -> Answer:
    async def call() -> Answer:
        async with httpx.AsyncClient(
            auth=auth, follow_redirects=True, timeout=60, verify=TLS
        ) as client:
            answer = await client.request(method, url, **_named(options))
            return Answer(answer.status_code, answer.text, _raw(answer.request))

    return asyncio.run(call())


def _named(options: dict[str, Any]) -> dict[str, Any]:
    # What requests calls data.
    return {"content" if name == "data" else name: value for name, value in options.items()}


def _raw(request: httpx.Request) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in request.headers.raw}


Send = Callable[..., Answer]
CALLERS: dict[str, tuple[Any, Send]] = {
    "requests": (for_requests.TokenAuth, with_requests),
    "httpx": (for_httpx.TokenAuth, with_httpx),
    "async httpx": (for_httpx.TokenAuth, with_async_httpx),
}


@pytest.fixture(params=CALLERS)
def caller(request: pytest.FixtureRequest) -> tuple[Any, Send]:
    """Return the class of auth objects and what sends a request with one."""
    return CALLERS[request.param]


@pytest.fixture
def auth_class(caller: tuple[Any, Send]) -> Any:
    return caller[0]


@pytest.fixture
def send(caller: tuple[Any, Send]) -> Send:
    return caller[1]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


# Servers that note what they get.


class Server(ThreadingHTTPServer):
    """Redirects every path of ``routes``, answers 200 to the others."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.routes: dict[str, tuple[int, str]] = {}
        self.got: list[tuple[str, dict[str, str], bytes]] = []

    def headers(self, path: str) -> dict[str, str]:
        """Return the headers, in lower case, of the one request that came to ``path``."""
        [headers] = [headers for at, headers, _ in self.got if at == path]
        return headers


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        names = [name.lower() for name in self.headers]
        assert len(names) == len(set(names))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.got.append((self.path, headers, body))
        status, location = self.server.routes.get(self.path, (200, ""))
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815 - http.server's names

    def log_message(self, *args: Any) -> None:
        pass


def _serve() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    yield from _serve()


@pytest.fixture
def elsewhere() -> Iterator[Server]:
    yield from _serve()


def key_file(folder: Path, content: str | bytes, mode: int = 0o600) -> Path:
    file = folder / "token"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    file.chmod(mode)
    return file


# At the example site.


@pytest.mark.parametrize("header", HEADERS)
def test_the_site_knows_the_caller(
    caller: tuple[Any, Send],
    header: str,
    live_server: Any,
    issue: Issue,
    configure: Callable[..., None],
) -> None:
    make, send = caller
    configure(TRANSPORTS=[header], ACTOR_HEADER="username")
    issued = issue(client_id="laptop", scopes=["samples:read", "samples:write"])
    auth = make(token=str(issued.plaintext), header=header, actor_header="username", actor="Jo D")
    assert '"client_id":"laptop"' in send(auth, live_server.url + WHOAMI).text
    made = send(auth, f"{live_server.url}/api/v1/samples/", "POST", json={"name": "first"})
    assert made.status == 201
    rows = AuditEvent.objects.filter(event="auth.accepted")
    assert {(row.client_id, row.claimed_actor) for row in rows} == {("laptop", "Jo D")}
    assert len(rows) == 2


def test_the_site_refuses_the_wrong_token(
    caller: tuple[Any, Send], live_server: Any, issue: Issue
) -> None:
    make, send = caller
    issued = issue()
    auth = make(token=str(issued.plaintext))
    assert send(auth, live_server.url + WHOAMI).status == 200
    services.revoke(issued.token)
    assert send(auth, live_server.url + WHOAMI).status == 401


def test_a_rotated_token_is_taken_up(
    caller: tuple[Any, Send], live_server: Any, issue: Issue, tmp_path: Path
) -> None:
    make, send = caller
    first = issue()
    file = key_file(tmp_path, f"{first.plaintext!s}\n")
    auth = make(file=file)
    assert send(auth, live_server.url + WHOAMI).status == 200
    successor = services.rotate(first.token)
    services.revoke(first.token)
    assert send(auth, live_server.url + WHOAMI).status == 401
    key_file(tmp_path, f"{successor.plaintext!s}\n")
    assert send(auth, live_server.url + WHOAMI).status == 200


# What is sent.


@pytest.mark.parametrize(
    ("header", "name", "value"),
    [
        ("Authorization: Bearer", "authorization", f"Bearer {TOKEN}"),
        ("Authorization: Token", "authorization", f"Token {TOKEN}"),
        ("X-Api-Key", "x-api-key", TOKEN),
        ("apitoken", "apitoken", TOKEN),
        ("X-Api-Key: Key", "x-api-key", f"Key {TOKEN}"),
    ],
)
def test_the_header(
    caller: tuple[Any, Send], server: Server, header: str, name: str, value: str
) -> None:
    make, send = caller
    answer = send(make(token=TOKEN, header=header), server.url + "/x")
    assert server.headers("/x")[name] == value
    assert header.partition(":")[0] in answer.sent
    assert "username" not in server.headers("/x")


def test_bearer_is_the_default(caller: tuple[Any, Send], server: Server) -> None:
    make, send = caller
    send(make(token=TOKEN), server.url + "/x")
    assert server.headers("/x")["authorization"] == f"Bearer {TOKEN}"


def test_a_header_of_the_callers_own_gives_way(caller: tuple[Any, Send], server: Server) -> None:
    make, send = caller
    auth = make(token=TOKEN, header="X-Api-Key", actor_header="username", actor="jo")
    given = {"x-aPI-key": "old", "USERNAME": "other", "Authorization": "Basic eDp5"}
    send(auth, server.url + "/x", headers=given)
    got = server.headers("/x")
    assert (got["x-api-key"], got["username"]) == (TOKEN, "jo")
    # requests lets an auth object replace nothing but what it sets.
    assert got["authorization"] == "Basic eDp5"


def test_the_body_arrives(caller: tuple[Any, Send], server: Server) -> None:
    make, send = caller
    send(make(token=TOKEN), server.url + "/x", "POST", data=b"\x00body")
    assert server.got[0][2] == b"\x00body"


# Where the token is from.


def test_from_the_environment(
    caller: tuple[Any, Send], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, send = caller
    auth = make(env="API_TOKEN", header="apitoken")
    with pytest.raises(TokenError, match="env='API_TOKEN': this environment variable isn't set"):
        send(auth, server.url)
    for token in (TOKEN, OTHER):
        monkeypatch.setenv("API_TOKEN", token)
        send(auth, f"{server.url}/{token}")
        assert server.headers(f"/{token}")["apitoken"] == token


def test_from_a_file(caller: tuple[Any, Send], server: Server, tmp_path: Path) -> None:
    make, send = caller
    auth = make(file=str(tmp_path / "token"), header="apitoken")
    with pytest.raises(TokenError, match=r"token': can't be read \(No such file") as caught:
        send(auth, server.url)
    assert caught.value.__suppress_context__
    for number, (token, end) in enumerate([(TOKEN, "\n"), (OTHER, "\r\n"), (TOKEN, "")]):
        key_file(tmp_path, token + end)
        send(auth, f"{server.url}/{number}")
        assert server.headers(f"/{number}")["apitoken"] == token


@pytest.mark.parametrize("first", ["token", "env", "file"])
def test_set_token(
    caller: tuple[Any, Send],
    server: Server,
    first: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, send = caller
    monkeypatch.setenv("API_TOKEN", TOKEN)
    values = {"token": TOKEN, "env": "API_TOKEN", "file": key_file(tmp_path, TOKEN)}
    auth = make(**{first: values[first]}, header="apitoken")
    send(auth, server.url + "/1")
    auth.set_token(OTHER)
    send(auth, server.url + "/2")
    with pytest.raises(TokenError, match="token=…: the token is empty"):
        auth.set_token("")
    send(auth, server.url + "/3")
    got = [server.headers(path)["apitoken"] for path in ("/1", "/2", "/3")]
    assert got == [TOKEN, OTHER, OTHER]


@pytest.mark.parametrize(
    "sources",
    [
        {},
        {"token": TOKEN, "env": "A"},
        {"env": "A", "file": "b"},
        {"token": "", "file": ""},
        {"env": "", "file": "b"},
    ],
)
def test_exactly_one_source(auth_class: Any, sources: dict[str, str]) -> None:
    with pytest.raises(TokenError, match="exactly one of token=, env= and file="):
        auth_class(**sources)
    with pytest.raises(TypeError):
        auth_class(TOKEN)


def test_threads_share_it(server: Server) -> None:
    auth = for_requests.TokenAuth(token=TOKEN, header="apitoken")

    def call(number: int) -> None:
        auth.set_token((TOKEN, OTHER)[number % 2])
        with_requests(auth, f"{server.url}/{number}")

    threads = [threading.Thread(target=call, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.got) == 12
    # Whichever was set last when it was asked; never a mixture.
    assert {headers["apitoken"] for _, headers, _ in server.got} <= {TOKEN, OTHER}


# What is refused, wherever the token is from.

BAD_TOKENS = [
    ("", "is empty"),
    ("a" * 20 + "\r\nX-Admin: yes", "visible ASCII"),
    ("a" * 20 + "\n\n", "visible ASCII"),
    ("a" * 20 + "\r", "visible ASCII"),
    ("a" * 20 + " b", "visible ASCII"),
    (" " + "a" * 20, "visible ASCII"),
    ("a" * 20 + "\t", "visible ASCII"),
    ("a" * 20 + "\x7f", "visible ASCII"),
    ("a" * 20 + "é", "visible ASCII"),
    ("\ufeff" + "a" * 20, "visible ASCII"),
    ("${API_TOKEN}", "a variable that was not filled in"),
    ("tka_${API_TOKEN}aaaaaa", "a variable that was not filled in"),
    ("a" * 4_097, "longer than 4096"),
    ("a" * 9_000, "longer than 4096"),
]
IDS = [f"{number}" for number, _ in enumerate(BAD_TOKENS)]


def refused(call: Callable[[], Any], text: str) -> str:
    """Return the message of the refusal, which doesn't show ``text``."""
    with pytest.raises(TokenError) as caught:
        call()
    shown = "".join(traceback.format_exception(caught.value))
    assert not text or text not in shown
    assert "aaaaa" not in shown
    return str(caught.value)


@pytest.mark.parametrize(("text", "problem"), BAD_TOKENS, ids=IDS)
def test_bad_tokens(auth_class: Any, text: str, problem: str) -> None:
    message = refused(lambda: auth_class(token=text), text)
    assert message.startswith("token=…: the token ")
    assert problem in message
    auth = auth_class(token=TOKEN)
    assert refused(lambda: auth.set_token(text), text) == message


@pytest.mark.parametrize(("text", "problem"), BAD_TOKENS, ids=IDS)
def test_bad_tokens_in_the_environment(
    caller: tuple[Any, Send],
    server: Server,
    text: str,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, send = caller
    monkeypatch.setenv("API_TOKEN", text)
    message = refused(lambda: send(make(env="API_TOKEN"), server.url), text)
    assert message.startswith("env='API_TOKEN': the token ")
    assert problem in message
    assert not server.got


@pytest.mark.parametrize(
    ("text", "problem"),
    # One line end belongs to a file.
    [
        *((text, why) for text, why in BAD_TOKENS if text[-1:] != "\r"),
        ("\n", "is empty"),
        ("a" * 4_096 + "\r\nb", "longer"),
    ],
)
def test_bad_tokens_in_a_file(
    caller: tuple[Any, Send], server: Server, text: str, problem: str, tmp_path: Path
) -> None:
    make, send = caller
    file = key_file(tmp_path, text)
    message = refused(lambda: send(make(file=file), server.url), text.strip())
    assert message.startswith(f"file={str(file)!r}: the token ")
    assert problem in message
    assert not server.got


def test_the_longest_token(caller: tuple[Any, Send], server: Server, tmp_path: Path) -> None:
    make, send = caller
    file = key_file(tmp_path, "a" * 4_096 + "\r\n")
    send(make(file=file), server.url + "/x")
    assert server.headers("/x")["authorization"] == "Bearer " + "a" * 4_096


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o601, 0o620, 0o660])
def test_files_that_others_read_or_change(auth_class: Any, mode: int, tmp_path: Path) -> None:
    auth = auth_class(file=key_file(tmp_path, TOKEN, mode))
    with pytest.raises(TokenError, match="token': others can read or change it; run chmod 600"):
        auth.headers_for("https://api.example/")


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640, 0o700])
def test_files_that_only_their_owner_and_group_read(
    auth_class: Any, mode: int, tmp_path: Path
) -> None:
    auth = auth_class(file=key_file(tmp_path, TOKEN, mode))
    assert auth.headers_for("https://api.example/") == {"Authorization": f"Bearer {TOKEN}"}


def test_a_folder_is_no_file(auth_class: Any, tmp_path: Path) -> None:
    with pytest.raises(TokenError, match=r"can't be read \(Is a directory"):
        auth_class(file=tmp_path).headers_for("https://api.example/")


@pytest.mark.parametrize("name", ["x\0y", "\ud800"])
def test_a_name_that_no_file_can_have(auth_class: Any, name: str) -> None:
    with pytest.raises(TokenError, match="no file can have this name"):
        auth_class(file=name).headers_for("https://api.example/")


@pytest.mark.parametrize(
    "header",
    [
        "", "Authorization", "authorization", "Authorization:Bearer", "Authorization: ", "X Api Key",
        "X-Api-Key\r\nX-Admin", "X-Api-Key\n", "Bearer: a b", "Cookie", "cookie: a", "Host", "ä",
        "Content-Length", "transfer-encoding",
        "Authorization:  Bearer", "Authorization: Bearer ", ": Bearer", "a_b",
    ],
)  # fmt: skip
def test_bad_headers(auth_class: Any, header: str) -> None:
    with pytest.raises(TokenError) as caught:
        auth_class(token=TOKEN, header=header)
    assert str(caught.value).startswith(f"header={header!r}: ")
    assert "Authorization: Bearer" in str(caught.value)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "actor", "named"),
    [
        ("username", "", "actor="),
        ("", "jo", "actor_header="),
        ("username", "jo\r\nX-Admin: yes", "actor="),
        ("username", "jo\n", "actor="),
        ("username", " jo", "actor="),
        ("username", "jo ", "actor="),
        ("username", "jö", "actor="),
        ("user name", "jo", "actor_header="),
        ("username\n", "jo", "actor_header="),
        ("X-API-key", "jo", "actor_header="),
        ("Host", "evil.example", "actor_header="),
        ("cookie", "a=b", "actor_header="),
        ("Content-Length", "3", "actor_header="),
        ("Transfer-Encoding", "chunked", "actor_header="),
        ("authorization", "Basic eDp5", "actor_header="),
    ],
)
def test_bad_actors(auth_class: Any, header: str, actor: str, named: str) -> None:
    with pytest.raises(TokenError) as caught:
        auth_class(token=TOKEN, header="X-Api-Key", actor_header=header, actor=actor)
    assert str(caught.value).startswith(named)


# Where the token may go.


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("https://api.example/", True),
        ("HTTPS://api.example/", True),
        ("https://192.0.2.1:8443/", True),
        ("http://localhost/", True),
        ("http://LOCALHOST:8000/", True),
        ("http://127.0.0.1:8000/", True),
        ("http://127.9.9.9/", True),
        ("http://[::1]:8000/", True),
        ("http://api.example/", False),
        ("http://192.168.0.1/", False),
        ("http://0.0.0.0/", False),
        ("http://localhost.api.example/", False),
        ("http://127.0.0.1.api.example/", False),
        ("http://127.0.0.1@api.example/", False),
        ("http://api.example/?https://localhost", False),
        ("http://[2001:db8::1]/", False),
        ("ftp://localhost/", False),
        ("ftp://127.0.0.1/", False),
        ("http+unix://api.example/", False),
        ("//localhost/", False),
        ("", False),
    ],
)
def test_private_urls(url: str, private: bool) -> None:
    assert is_confidential(url) is private


@pytest.mark.parametrize("header", HEADERS)
def test_not_by_plain_http(caller: tuple[Any, Send], header: str) -> None:
    make, send = caller
    url = "http://jo:pass@api.example.invalid/x?secret=1"
    with pytest.raises(TokenError) as caught:
        send(make(token=TOKEN, header=header), url)
    assert str(caught.value) == (
        "others could read the token on its way to http://api.example.invalid; use https, or "
        "insecure=True where that is no danger."
    )


def test_insecure_is_for_those_who_say_so(auth_class: Any) -> None:
    auth = auth_class(token=TOKEN, header="apitoken", insecure=True)
    assert auth.headers_for("http://api.example/") == {"apitoken": TOKEN}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://a/", "http://a:80/x?y", True),
        ("https://a/", "https://A:443", True),
        ("https://a:8443/", "https://a:8443/b", True),
        ("https://a/", "https://a:8443/", False),
        ("https://a/", "http://a/", False),
        ("http://a/", "https://a/", False),
        ("http://a:443/", "https://a:443/", False),
        ("https://a/", "https://b/", False),
        ("https://a/", "https://a.b/", False),
        ("https://a/", "https://a:0/", False),
        ("https://a/", "https://a@b/", False),
        ("https://a/", "https://a:99999/", False),
        ("https://a:99999/", "https://a:99999/", False),
        ("https://a/", "https://[a/", False),
        ("https://a/", "", False),
    ],
)
def test_origins(one: str, other: str, same: bool) -> None:
    assert same_origin(one, other) is same


def with_actor(make: Any, header: str) -> Any:
    return make(token=TOKEN, header=header, actor_header="username", actor="jo")


def names(headers: dict[str, str]) -> set[str]:
    """Return which of our headers are there."""
    return headers.keys() & {"authorization", "x-api-key", "apitoken", "username"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("header", "method"), [(HEADERS[0], "POST"), (HEADERS[1], "GET"), (HEADERS[2], "POST")]
)
def test_no_other_origin_gets_the_token(
    caller: tuple[Any, Send],
    server: Server,
    elsewhere: Server,
    header: str,
    status: int,
    method: str,
) -> None:
    make, send = caller
    server.routes["/away"] = (status, elsewhere.url + "/here")
    elsewhere.routes["/here"] = (status, server.url + "/back")
    auth = with_actor(make, header)
    assert send(auth, server.url + "/away", method, data=b"body").status == 200
    first = server.headers("/away")
    assert names(first) == {header.partition(":")[0].lower(), "username"}
    assert not names(elsewhere.headers("/here"))
    assert TOKEN not in str(elsewhere.headers("/here"))
    # Nor is it sent where somebody else says.
    assert not names(server.headers("/back"))
    # The next request has it again.
    send(auth, server.url + "/again")
    assert names(server.headers("/again")) == names(first)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize(
    "away",
    ["//127.0.0.1:{port}/x", "http://localhost:{own}/x", "http:////127.0.0.1:{port}/x", "////127.0.0.1:{port}/x"],
)  # fmt: skip
def test_other_ways_of_writing_another_origin(
    caller: tuple[Any, Send], server: Server, elsewhere: Server, header: str, away: str
) -> None:
    make, send = caller
    server.routes["/away"] = (302, away.format(port=elsewhere.server_port, own=server.server_port))
    # Some of these httpx doesn't follow.
    with contextlib.suppress(httpx.HTTPError):
        send(with_actor(make, header), server.url + "/away")
    assert all(not names(headers) for _, headers, _ in elsewhere.got)
    for _, headers, _ in server.got:
        if not headers["host"].startswith("127"):
            assert not names(headers)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("absolute", [True, False])
def test_the_same_origin_gets_the_token_again(
    caller: tuple[Any, Send], server: Server, header: str, absolute: bool
) -> None:
    make, send = caller
    base = server.url if absolute else ""
    server.routes.update({"/a": (301, base + "/b"), "/b": (307, base + "/c/")})
    send(with_actor(make, header), server.url + "/a")
    assert names(server.headers("/c/")) == names(server.headers("/a")) != set()


@pytest.mark.parametrize("header", HEADERS)
def test_redirects_that_are_followed_by_hand(
    server: Server, elsewhere: Server, header: str
) -> None:
    server.routes["/away"] = (307, elsewhere.url + "/here")
    with requests.Session() as session:
        answer = session.get(
            server.url + "/away",
            auth=with_actor(for_requests.TokenAuth, header),
            allow_redirects=False,
            timeout=60,
        )
        assert answer.next is not None
        assert session.send(answer.next, timeout=60).status_code == 200
    auth: Any = with_actor(for_httpx.TokenAuth, header)
    for client in (httpx.Client(timeout=60), httpx.Client(timeout=60, auth=auth)):
        with client:
            found = client.get(server.url + "/away", auth=auth)
            assert found.next_request is not None
            assert client.send(found.next_request).status_code == 200
    assert len(elsewhere.got) == 3
    assert all(not names(headers) for _, headers, _ in elsewhere.got)


@pytest.mark.parametrize("header", HEADERS)
def test_a_chain_of_redirects_that_is_followed_by_hand(
    server: Server, elsewhere: Server, header: str
) -> None:
    server.routes.update({"/a": (302, "/b"), "/b": (302, elsewhere.url + "/c")})
    elsewhere.routes.update({"/c": (302, "/again"), "/again": (302, server.url + "/d")})
    auth: Any = with_actor(for_httpx.TokenAuth, header)
    with httpx.Client(timeout=60, auth=auth) as client:
        answer = client.get(server.url + "/a")
        while answer.next_request is not None:
            answer = client.send(answer.next_request)
    assert names(server.headers("/a")) == names(server.headers("/b")) != set()
    assert not names(elsewhere.headers("/c"))
    assert not names(elsewhere.headers("/again"))
    assert not names(server.headers("/d"))
    # What the caller asked for besides is still there.
    assert "timeout" in answer.request.extensions


def test_a_streamed_body_survives_a_redirect(server: Server, tmp_path: Path) -> None:
    server.routes["/a"] = (307, "/b")
    upload = tmp_path / "upload"
    upload.write_bytes(b"x" * 100_000)
    with upload.open("rb") as body:
        with_requests(for_requests.TokenAuth(token=TOKEN), server.url + "/a", "POST", data=body)
    assert [len(body) for _, _, body in server.got] == [100_000, 100_000]


# What is seen of it.


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ({"token": TOKEN}, "TokenAuth(token=…, header='Authorization: Bearer')"),
        ({"token": TOKEN, "header": "apitoken"}, "TokenAuth(token=…, header='apitoken')"),
        ({"env": "API_TOKEN"}, "TokenAuth(env='API_TOKEN', header='Authorization: Bearer')"),
        ({"file": "/a/b"}, "TokenAuth(file='/a/b', header='Authorization: Bearer')"),
    ],
)
def test_reprs(auth_class: Any, source: dict[str, str], shown: str) -> None:
    assert repr(auth_class(**source)) == shown


@pytest.mark.parametrize("header", HEADERS)
def test_the_token_is_nowhere_in_reprs(auth_class: Any, header: str) -> None:
    auth = auth_class(token=TOKEN, header=header)
    assert TOKEN not in repr(vars(auth))
    assert TOKEN not in repr(auth.headers_for("https://api.example/"))
    assert TOKEN not in repr(vars(copy.copy(auth)))


@pytest.mark.parametrize("header", HEADERS)
def test_the_token_is_nowhere_in_reprs_of_requests(server: Server, header: str) -> None:
    one = requests.get(
        server.url, auth=for_requests.TokenAuth(token=TOKEN, header=header), timeout=60
    )
    other = httpx.get(server.url, auth=for_httpx.TokenAuth(token=TOKEN, header=header), timeout=60)
    assert TOKEN not in repr(one.request.headers)
    assert TOKEN not in repr(other.request.headers)


@pytest.mark.parametrize("bad", ["é" + TOKEN, TOKEN + "${X}", TOKEN * 99])
def test_refused_tokens_are_in_no_frame_of_ours(auth_class: Any, bad: str) -> None:
    """What an error tracker shows, which asks for the repr of half-made objects too."""
    auth = auth_class(token=TOKEN)
    calls: list[Callable[[], Any]] = [
        lambda: auth_class(token=bad),
        lambda: auth.set_token(bad),
        lambda: auth_class(token=TOKEN, header="Authorization"),
        lambda: auth_class(token=TOKEN, actor_header="username"),
    ]
    for call in calls:
        with pytest.raises(TokenError) as caught:
            call()
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        ours = [frame for frame in shown.stack if "tokenauth/clients" in frame.filename]
        assert ours
        held = f"{[frame.locals for frame in ours]}"
        assert "S3cret" not in held
        assert "repr() failed" not in held


@pytest.mark.parametrize("token", [5, TOKEN.encode()])
def test_a_token_is_text(auth_class: Any, token: Any) -> None:
    with pytest.raises(TypeError, match=r"^a token is a str\.$"):
        auth_class(token=token)


# Callers don't need what servers need.


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("", ["requests", "httpx"]),
        (".source", ["requests", "httpx"]),
        (".requests", ["httpx"]),
        (".httpx", ["requests"]),
    ],
)
def test_nothing_else_is_imported(module: str, without: list[str]) -> None:
    program = f"""
import sys
for name in {[*without, "django", "rest_framework", "django_ratelimit"]}:
    sys.modules[name] = None  # Importing it raises.
import tokenauth.clients{module}
ours = {{name for name in sys.modules if name.startswith("tokenauth")}}
print(sorted(name for name in ours if not name.startswith("tokenauth.clients")))
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("['tokenauth']\n", "")
