"""Stop a Redis under load and print how long counting took, before, during and after.

Starts a redis-server of its own on a free port of 127.0.0.1; ends by itself. Exits with 1 when
a limit was off in any phase, or a call took longer than half a second.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PORT = free_port()
os.environ["REDIS_URL"] = f"redis://127.0.0.1:{PORT}/0"
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

import django  # noqa: E402 - settings first

django.setup()

from django.core.cache import caches  # noqa: E402

from tokenauth import limits  # noqa: E402
from tokenauth.rates import Rate  # noqa: E402

LIMIT = Rate(100, 86_400)
PHASES = ["up", "frozen", "up again", "gone", "up at last"]
LONGEST_CALL_SECONDS = 0.5


class Load:
    """Threads that count as fast as they can, and note how long it took."""

    def __init__(self, threads: int) -> None:
        self.phase = PHASES[0]
        self.times: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self.within: dict[str, int] = dict.fromkeys(PHASES, 0)
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.work) for _ in range(threads)]

    def work(self) -> None:
        """Count until told to stop."""
        while not self.stopped.is_set():
            phase, start = self.phase, time.perf_counter()
            usage = limits.count("view", "load", LIMIT)
            self.times[phase].append(time.perf_counter() - start)
            self.within[phase] += bool(usage and not usage.excess)


def start_redis() -> subprocess.Popen[bytes]:
    """Start the server and wait until it answers."""
    command = ["redis-server", "--port", str(PORT), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", PORT)) == 0:
                return process
        time.sleep(0.05)
    raise SystemExit("redis-server doesn't start")


def run(seconds: float, threads: int) -> Load:
    """Go through the phases, ``seconds`` each; return what was noted."""
    redis, load = start_redis(), Load(threads)
    for thread in load.threads:
        thread.start()
    try:
        for phase in PHASES:
            if phase == "frozen":
                redis.send_signal(signal.SIGSTOP)
            elif phase == "up again":
                redis.send_signal(signal.SIGCONT)
            elif phase == "gone":
                redis.kill()
                redis.wait(timeout=10)
            elif phase == "up at last":
                redis = start_redis()
            load.phase = phase
            time.sleep(seconds)
    finally:
        load.stopped.set()
        for thread in load.threads:
            thread.join(timeout=10)
        redis.kill()
        redis.wait(timeout=10)
    return load


def main() -> int:
    """Print one line a phase; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a phase (5)")
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    load = run(options.seconds, options.threads)
    print(f"{'phase':<12}{'calls':>9}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'let through':>13}")
    failed = False
    for phase in PHASES:
        times = sorted(load.times[phase]) or [0.0]
        p50, p99, longest = (times[int(len(times) * part)] for part in (0.5, 0.99, 0.999999))
        # A server that was gone comes back without its counters: one more window's worth.
        failed |= not load.times[phase] or load.within[phase] > LIMIT.requests + options.threads
        failed |= longest > LONGEST_CALL_SECONDS
        print(
            f"{phase:<12}{len(times):>9}{p50 * 1000:>9.2f}{p99 * 1000:>9.2f}{longest * 1000:>9.2f}"
            f"{load.within[phase]:>13}"
        )
    recovered = not caches["ratelimit"].breaker.opened
    print("back on Redis" if recovered else "NOT back on Redis")
    return int(failed or not recovered)


if __name__ == "__main__":
    raise SystemExit(main())
