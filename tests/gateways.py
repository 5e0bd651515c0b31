"""nginx and Caddy with the configurations that the documentation shows, and a service behind them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.harness import nginx
from tests.mcp_servers import stop
from tests.ports import free_port
from tests.processes import ROOT

PROGRAMS = {
    name: os.environ.get(f"TOKENAUTH_TEST_{name.upper()}", "") for name in ("nginx", "caddy")
}


def documented(language: str) -> str:
    """Return the one configuration in this language that ``docs/gateways.md`` has."""
    page = (ROOT / "docs/gateways.md").read_text()
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)
    return str(found)


class _Echo(BaseHTTPRequestHandler):
    """Answers every request with what it got."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        seen = {
            "method": self.command,
            "path": self.path,
            "headers": [[name, value] for name, value in self.headers.items()],
        }
        self.server.seen.append(seen)  # type: ignore[attr-defined]
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        pass


for _method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"):
    setattr(_Echo, f"do_{_method}", _Echo._answer)


class Service:
    """The service that a gateway protects; ``seen`` has the requests that reached it."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
        self._server.daemon_threads = True
        self.seen: list[dict[str, Any]] = []
        self._server.seen = self.seen  # type: ignore[attr-defined]
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Answer:
    """What came back for one request."""

    def __init__(self, text: bytes, method: str) -> None:
        head, _, body = text.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        pairs = (line.split(": ", 1) for line in lines)
        self.headers = {name.lower(): value for name, value in pairs}
        self.body = b"" if method == "HEAD" else body

    def json(self) -> Any:
        return json.loads(self.body)

    def values(self, name: str) -> list[str]:
        """Return the values of a header that the service got, however it was written."""
        wanted = name.lower()
        pairs = self.json()["headers"]
        return [value for key, value in pairs if key.lower().replace("_", "-") == wanted]


class Gateway:
    """A gateway in front of ``service``, that asks the site at ``site``, both of them ports."""

    def __init__(
        self, name: str, folder: Path, *, site: int, service: int, configuration: str = ""
    ) -> None:
        self.name, self.port = name, free_port()
        folder.mkdir()
        text = configuration or documented(name)
        text = text.replace("127.0.0.1:8000", f"127.0.0.1:{site}")
        text = text.replace("127.0.0.1:9000", f"127.0.0.1:{service}")
        start = self._set_nginx_up if name == "nginx" else self._set_caddy_up
        self.log = (folder / "output").open("w+")
        self.process = subprocess.Popen(
            start(folder, text),
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_DATA_HOME": str(folder)},
        )
        self._wait()

    def _set_nginx_up(self, folder: Path, text: str) -> list[str]:
        assert "listen 80;" in text
        site = text.replace("listen 80;", f"listen 127.0.0.1:{self.port};")
        return [PROGRAMS["nginx"], *nginx.prepare(folder, site)]

    def _set_caddy_up(self, folder: Path, text: str) -> list[str]:
        assert text.startswith("api.example {")
        site = text.replace(
            "api.example {", f"http://api.example:{self.port} {{\n\tbind 127.0.0.1", 1
        )
        (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n}}\n{site}")
        return [
            PROGRAMS["caddy"],
            "run",
            "--adapter",
            "caddyfile",
            "--config",
            f"{folder}/Caddyfile",
        ]

    def _wait(self) -> None:
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(f"{self.name} doesn't serve:\n{Path(self.log.name).read_text()}")

    def ask(self, target: str, *, method: str = "GET", **headers: str) -> Answer:
        """Return the answer to a request, which is sent exactly as it is given."""
        lines = [f"{method} {target} HTTP/1.1", "Host: api.example", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        received = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
            while part := connection.recv(65_536):
                received += part
        return Answer(received, method)

    def stop(self) -> None:
        stop(self.process)
        self.log.close()
