"""The servers that the trial starts, with the files of this folder."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

from benchmarks.harness import nginx
from benchmarks.harness.killed_servers import Server, children, kill, wait_for
from benchmarks.harness.redis_server import free_port
from project.deployment.load import ask
from project.deployment.units import FOLDER, read_unit

ROOT = FOLDER.parent.parent


class Gunicorn(Server):
    """One machine of the site."""

    def command(self) -> list[str]:
        """Return the command that starts it."""
        options = ["--config", str(FOLDER / "gunicorn.conf.py"), "--chdir", str(ROOT)]
        where = ["--bind", f"127.0.0.1:{self.port}", "--workers", "1"]
        return [sys.executable, "-m", "gunicorn", *options, *where, "--log-level", "warning"]

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection that doesn't go through nginx."""
        return http.client.HTTPConnection("localhost", self.port, timeout=30)

    def is_ready(self) -> bool:
        """Return whether a worker answers."""
        with suppress(OSError, http.client.HTTPException), closing(self.connect()) as connection:
            return ask(connection, "", "ready") == http.HTTPStatus.UNAUTHORIZED
        return False

    def workers(self) -> set[int]:
        """Return the processes of the workers."""
        if self.process is None:
            raise RuntimeError("gunicorn isn't running")
        return set(children(self.process.pid))

    def kill_worker(self) -> None:
        """Kill the worker with SIGKILL, and wait until another one answers.

        Raises RuntimeError if there is none to kill, SystemExit if no other one comes.
        """
        if not (killed := self.workers()):
            raise RuntimeError("gunicorn has no worker")
        kill(killed)
        wait_for("another worker", lambda: self.is_ready() and self.workers().isdisjoint(killed))


class Nginx(Server):
    """nginx with ``nginx.conf``."""

    def __init__(self, folder: Path, machines: list[Gunicorn]) -> None:
        super().__init__(folder)
        folder.mkdir()
        self.certificate = folder / "certificate.pem"
        key = folder / "key.pem"
        make_certificate(self.certificate, key)
        upstream = "\n".join(f"server 127.0.0.1:{machine.port};" for machine in machines)
        site = (FOLDER / "nginx.conf").read_text()
        for written, used in {
            "server 127.0.0.1:8000;": upstream,
            "    listen 80;\n": f"    listen 127.0.0.1:{free_port()};\n",
            "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
            "/etc/tokenauth/tls/fullchain.pem": str(self.certificate),
            "/etc/tokenauth/tls/privkey.pem": str(key),
        }.items():
            if site.count(written) != 1:
                raise ValueError(f"nginx.conf must have {written!r} once.")
            site = site.replace(written, used)
        self.options = nginx.prepare(folder, site)

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return [shutil.which("nginx") or "/usr/sbin/nginx", *self.options]

    def is_ready(self) -> bool:
        """Return whether it accepts connections."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return True
        return False


class Drain(Server):
    """The worker of ``tokenauth-drain.service``."""

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return [sys.executable, str(ROOT / "manage.py"), *read_unit("drain").command]

    def is_ready(self) -> bool:
        """Return whether it has started."""
        return self.process is not None and self.process.poll() is None


def make_certificate(certificate: Path, key: Path) -> None:
    """Make a certificate for localhost that its own key signs."""
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    made += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out"]
    subprocess.run([*made, str(certificate)], check=True, capture_output=True, timeout=60)
