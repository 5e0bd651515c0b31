"""Load on a server: by wrk where it is installed, else by a small client in a process of its own.

``python -m harness.load HOST:PORT PATH AUTHORIZATION SECONDS CONNECTIONS`` is that client.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.client import HTTPConnection

from harness.environment import BENCHMARKS

OK = b"200"


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the clients saw."""

    requests: int
    """Answers in all."""
    refused: int
    """Answers that were errors."""
    broken: int
    """Connections that failed."""
    seconds: float
    """How long it took."""
    p50: float
    """Seconds, the median."""
    p99: float
    """Seconds that 99 of 100 requests stayed below."""

    @property
    def accepted(self) -> int:
        """Answers that were none."""
        return self.requests - self.refused

    @property
    def rate(self) -> float:
        """Accepted requests a second."""
        return self.accepted / self.seconds


def generator() -> str:
    """Return what makes the load."""
    return "wrk" if shutil.which("wrk") else "harness.load"


def run(address: str, path: str, authorization: str, *, seconds: int, connections: int) -> Load:
    """Send requests as fast as they are answered."""
    if generator() == "wrk":
        command = ["wrk", "--threads", "1", "--connections", str(connections)]
        command += ["--duration", f"{seconds}s", "--script", str(BENCHMARKS / "harness/wrk.lua")]
        command += ["--header", f"Authorization: {authorization}", f"http://{address}{path}"]
    else:
        command = [sys.executable, "-m", "harness.load", address, path, authorization]
        command += [str(seconds), str(connections)]
    search = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    done = subprocess.run(command, env=search, stdout=subprocess.PIPE, check=True, text=True)
    return Load(**json.loads(done.stdout.splitlines()[-1]))


def wait_for_answer(address: str, path: str, authorization: str, seconds: float = 30.0) -> None:
    """Return once the server accepts a request; raises OSError if it never does."""
    end = time.monotonic() + seconds
    while True:
        try:
            connection = HTTPConnection(address, timeout=seconds)
            connection.request("GET", path, headers={"Authorization": authorization})
            status = connection.getresponse().status
            connection.close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            if status != HTTPStatus.OK:
                raise SystemExit(f"{address} answers {status}")
            return


class Client:
    """Connections that each send one request, as a server without keep-alive has it."""

    def __init__(self, address: str, path: str, authorization: str) -> None:
        self.host, _, self.port = address.partition(":")
        head = [f"GET {path} HTTP/1.1", f"Host: {address}", f"Authorization: {authorization}"]
        self.head = "\r\n".join([*head, "Connection: close", "", ""]).encode()
        self.times: list[float] = []
        self.refused = self.broken = 0

    async def work(self, end: float) -> None:
        """Send requests until ``end``."""
        while (start := time.perf_counter()) < end:
            try:
                reader, writer = await asyncio.open_connection(self.host, int(self.port))
                writer.write(self.head)
                answer = await reader.read()
                writer.close()
            except OSError:
                self.broken += 1
                continue
            self.times.append(time.perf_counter() - start)
            self.refused += answer.split(b" ", 2)[1] != OK

    async def run(self, seconds: float, connections: int) -> Load:
        """Work in parallel; return what came of it."""
        start = time.perf_counter()
        await asyncio.gather(*(self.work(start + seconds) for _ in range(connections)))
        times = sorted(self.times) or [0.0]
        return Load(
            requests=len(self.times),
            refused=self.refused,
            broken=self.broken,
            seconds=time.perf_counter() - start,
            p50=times[len(times) // 2],
            p99=times[len(times) * 99 // 100],
        )


if __name__ == "__main__":
    _address, _path, _authorization, _seconds, _connections = sys.argv[1:]
    _client = Client(_address, _path, _authorization)
    print(json.dumps(asdict(asyncio.run(_client.run(float(_seconds), int(_connections))))))
