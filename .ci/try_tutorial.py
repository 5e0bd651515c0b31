"""Do what docs/tutorial.md says, in an empty folder: ``python try_tutorial.py WHEEL``.

Shell blocks are run as they stand, in one shell, except that the wheel is installed, nobody types a
password, and the server takes a free port. Then everything that the page shows must have been printed.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(sh|python|text)\n(.*?)^```", re.M | re.S)
SERVE = "python manage.py runserver\n"
# What differs from run to run.
CHANGING = [
    (re.compile(r"\([0-9a-z]{12}\)"), "(ID)"),
    (re.compile(r"in [0-9]+[.][0-9]+s"), "in SECONDS"),
]
SECONDS = 600
"""After so long, something hangs."""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def make_script(wheel: str, port: int) -> tuple[str, list[str]]:
    """Return the commands of the page, and the texts that they must print in this order."""
    lines, shown = ["set -eu"], []
    for language, text in BLOCK.findall(PAGE.read_text()):
        if language == "text":
            shown.append(text)
        elif language == "python":
            name = text.partition("\n")[0].removeprefix("# ")
            added = ">>" if name.endswith("settings.py") else ">"
            lines.append(f"cat {added} {name} <<'END_OF_FILE'\n{text}END_OF_FILE")
        elif text == SERVE:
            lines.append(f"{SERVE.strip()} --noreload {port} >server.log 2>&1 & server=$!")
            lines.append("trap 'kill $server' EXIT")
            lines.append(f"until curl -so server.txt http://localhost:{port}/; do sleep 0.2; done")
        else:
            run = text.replace("pip install ../drf-tokenauth", f"pip install -q {wheel}")
            run = run.replace("createsuperuser ", "createsuperuser --noinput ")
            # A terminal shows each answer in a line of its own.
            lines.append(re.sub(r"(?m)^curl .*", r"\g<0>; echo", run))
    return "\n".join(lines).replace("localhost:8000", f"localhost:{port}"), shown


def normalise(text: str) -> str:
    """Return ``text`` without what differs from run to run."""
    for pattern, name in CHANGING:
        text = pattern.sub(name, text)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


def run(script: str, folder: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the commands; end what they started."""
    command = ["timeout", "--kill-after=5", str(SECONDS), "bash", "-c", script]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def main(wheel: str) -> int:
    """Return 0 if the page is true."""
    script, shown = make_script(str(Path(wheel).resolve()), free_port())
    environment = {**os.environ, "DJANGO_SUPERUSER_PASSWORD": "for this run only"}
    environment.pop("PYTHONPATH", None)
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        done = run(script, folder, environment)
    printed = rest = normalise(done.stdout)
    for text in shown:
        wanted = normalise(text)
        if wanted not in rest:
            print(f"{printed}\n\nThe page shows what wasn't printed there:\n{text}")
            return 1
        rest = rest.partition(wanted)[2]
    if done.returncode:
        print(printed)
        return done.returncode
    print(f"the tutorial took {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
