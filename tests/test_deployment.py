"""project/deployment: its files agree with each other, with the commands, and with docs/deploy.md."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import get_commands, load_command_class

from project.deployment import commands, units
from project.deployment.commands import read_environment
from project.deployment.load import Answer
from project.deployment.outcome import Outage, Result, Stored, describe, find_losses
from project.deployment.units import FOLDER, UNITS, Unit, read_section, read_unit, timed
from tests.conftest import Issue, ask, header
from tests.test_docs import DOCS, ROOT
from tokenauth.models import AuditEvent

PAGE = DOCS / "deploy.md"
SERVICES = sorted(path.stem.removeprefix("tokenauth-") for path in UNITS.glob("*.service"))
COMMANDS = [name for name in SERVICES if name != "web"]
EXAMPLES = ["site.env.example", "audit.env.example", "owner.env.example"]


def parse(words: list[str]) -> None:
    """Fail unless these are valid arguments of ``manage.py``."""
    name, *rest = words
    load_command_class(get_commands()[name], name).create_parser("manage.py", name).parse_args(rest)


@pytest.mark.parametrize("name", COMMANDS)
def test_units_run_commands_that_exist(name: str) -> None:
    parse(read_unit(name).command)


def test_every_command_of_a_timer_has_a_service() -> None:
    assert set(timed()) == set(COMMANDS) - {"drain"}


@pytest.mark.parametrize("name", SERVICES)
def test_only_the_commands_of_the_audit_read_its_environment(name: str) -> None:
    service = read_section(UNITS / f"tokenauth-{name}.service", "Service")
    user = "tokenauth" if name in {"web", "notify"} else "tokenauth-audit"
    text = (UNITS / f"tokenauth-{name}.service").read_text()
    assert service["User"] == user
    assert ("/audit.env" in text) == (user == "tokenauth-audit")


def test_heads_are_read_where_they_are_written() -> None:
    assert read_unit("verify").reads == read_unit("seal").appends != ""


@pytest.mark.parametrize("name", SERVICES)
def test_a_file_gets_no_messages_in_between(name: str) -> None:
    path = UNITS / f"tokenauth-{name}.service"
    unit, service = read_section(path, "Unit"), read_section(path, "Service")
    file = service.get("StandardOutput", "").partition("append:")[2]
    if file:
        # Without it, systemd would append messages too.
        assert service["StandardError"] == "journal"
        # Otherwise heads would be stored on the local disk if the file system isn't mounted.
        assert service["ExecStartPre"] == f"/usr/bin/mountpoint -q {Path(file).parent}"
    file = file or service.get("StandardInput", "").partition("file:")[2]
    assert unit.get("RequiresMountsFor", "") == (str(Path(file).parent) if file else "")


@pytest.mark.parametrize(
    ("given", "appends"),
    [
        ("StandardOutput=append:/heads", ("/heads", "/heads")),
        ("StandardOutput=append:/heads\nStandardError=inherit", ("/heads", "/heads")),
        ("StandardOutput=append:/heads\nStandardError=journal", ("/heads", "")),
        ("StandardOutput=journal", ("", "")),
        ("", ("", "")),
    ],
)
def test_a_unit_sends_output_where_systemd_does(
    given: str, appends: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "UNITS", tmp_path)
    start = "ExecStart=/srv/tokenauth/.venv/bin/python manage.py tokenauth_audit seal"
    (tmp_path / "tokenauth-x.service").write_text(f"[Service]\n{start}\n{given}\n")
    unit = read_unit("x")
    assert (unit.appends, unit.appends_errors) == appends


@pytest.mark.parametrize(
    ("unit", "heads"),
    [
        (Unit(name="x", command=[], appends="/heads", appends_errors="/heads"), "head\nmessage\n"),
        (Unit(name="x", command=[], appends="/heads"), "head\n"),
        (Unit(name="x", command=[]), ""),
    ],
)
def test_the_trial_appends_what_the_unit_appends(
    unit: Unit, heads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import sys; print('head'); print('message', file=sys.stderr)"
    monkeypatch.setattr(commands, "MANAGE", [sys.executable, "-c", program])
    site = commands.Site(tmp_path, {"audit": {}})
    site.heads.touch()
    done = site.run(unit)
    assert (done.stdout, done.stderr, site.heads.read_text()) == ("head\n", "message\n", heads)


def test_nginx_asks_gunicorn_and_closes_connections_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BIND", "WEB_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)
    gunicorn = runpy.run_path(str(FOLDER / "gunicorn.conf.py"))
    nginx = (FOLDER / "nginx.conf").read_text()
    assert f"server {gunicorn['bind']};" in nginx
    [seconds] = re.findall(r"keepalive_timeout (\d+)s;", nginx)
    assert gunicorn["keepalive"] > int(seconds)
    assert read_environment("site.env.example")["BIND"] == gunicorn["bind"]


def test_the_examples_have_the_variables_that_are_read() -> None:
    read = set()
    for path in (FOLDER / "settings.py", FOLDER / "gunicorn.conf.py", ROOT / "project/settings.py"):
        text = path.read_text()
        read |= set(
            re.findall(r'(?:environ\.get\(|environ\[|_required\(|_given\(|_flag\()"(\w+)"', text)
        )
    # These have a default that is right in production.
    optional = {"DEBUG", "DATA_DIR", "TOKENAUTH_KEY_FILE"}
    given = {key for name in EXAMPLES for key in read_environment(name)}
    assert given == read - optional | {"DJANGO_SETTINGS_MODULE"}


@pytest.mark.django_db
def test_clients_do_not_choose_the_path_in_the_audit(
    issue: Issue, configure: Callable[..., None]
) -> None:
    configure(TRUSTED_PROXIES=["127.0.0.1"])
    nginx = (FOLDER / "nginx.conf").read_text()
    deleted = {name.lower() for name in re.findall(r'proxy_set_header (\S+) "";', nginx)}
    sent = {
        "X-Original-Method": "GET",
        "X-Original-URI": "/forged",
        "X-Forwarded-Method": "GET",
        "X-Forwarded-Uri": "/forged",
    }
    for kind in ("X-Original", "X-Forwarded"):
        kept = {
            name: value
            for name, value in sent.items()
            if name.startswith(kind) and name.lower() not in deleted
        }
        ask("/auth/verify/?any=1", {**header(issue()), **kept})
    assert set(AuditEvent.objects.exclude(path="").values_list("path", flat=True)) == {
        "/auth/verify/"
    }


def test_nginx_listens_on_ports_that_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg")
    ports = iter([5000, 7000])
    for module in ("project.deployment.servers", "benchmarks.harness.killed_servers"):
        monkeypatch.setattr(f"{module}.free_port", lambda: next(ports))
    servers = import_module("project.deployment.servers")
    monkeypatch.setattr(servers, "make_certificate", lambda *_: None)
    servers.Nginx(tmp_path / "nginx", [])
    site = (tmp_path / "nginx/site.conf").read_text()
    assert re.findall("listen (.*);", site) == ["127.0.0.1:7000", "127.0.0.1:5000 ssl"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_shell_reads_the_examples_as_systemd_does(name: str, tmp_path: Path) -> None:
    # systemd takes everything between single quotes as it is written.
    special = "$HOME`id`\\n"
    path = tmp_path / name
    path.write_text((FOLDER / name).read_text().replace("change-me", special))
    script = f"set -a; . {shlex.quote(str(path))}; env -0"
    done = subprocess.run(["sh", "-c", script], env={}, capture_output=True, check=True)
    read = dict(pair.partition("=")[::2] for pair in done.stdout.decode().split("\0") if pair)
    given = read_environment(name)
    assert {key: read[key] for key in given} == {
        key: re.sub("[0-9a-f]{64}", lambda _: special, value) for key, value in given.items()
    }
    assert re.findall("^[^#\n].*", path.read_text(), re.M) == [
        f"{key}='{read[key]}'" for key in given
    ]


VARIABLES = {
    **read_environment("owner.env.example"),
    **read_environment("audit.env.example"),
    **read_environment("site.env.example"),
}
SECRETS = ["SECRET_KEY", "TOKEN_PEPPER_2026", "AUDIT_SEAL_KEY_2026"]
ADDRESSES = ["DATABASE_URL", "REDIS_URL", "AUDIT_REDIS_URL"]


def read_settings(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str] | None = None
) -> dict[str, object]:
    """Return the settings of production, with these variables in place of the examples'."""
    for name, value in {**VARIABLES, **(changed or {})}.items():
        monkeypatch.setenv(name, value)
    return runpy.run_path(str(FOLDER / "settings.py"))


def test_settings_take_the_values_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_settings(monkeypatch)
    assert settings["SECRET_KEY"] == VARIABLES["SECRET_KEY"]
    tokenauth = settings["TOKENAUTH"]
    assert isinstance(tokenauth, dict)
    assert tokenauth["PEPPERS"] == {"2026": VARIABLES["TOKEN_PEPPER_2026"]}
    assert tokenauth["AUDIT_SEAL_KEYS"] == {"2026": VARIABLES["AUDIT_SEAL_KEY_2026"]}


def test_the_examples_have_placeholders_for_all_secrets() -> None:
    text = "".join((FOLDER / name).read_text() for name in EXAMPLES)
    lines = [line for line in text.splitlines() if line.startswith((*SECRETS, *ADDRESSES))]
    assert len(lines) == len(SECRETS + ADDRESSES) + 2  # Each of the three roles has a DATABASE_URL.
    assert [line for line in lines if "change-me" not in line] == []


@pytest.mark.parametrize("name", SECRETS + ADDRESSES)
def test_settings_refuse_a_placeholder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = f"redis://:change-me@127.0.0.1/{'0' * 32}"
    with pytest.raises(ImproperlyConfigured, match=f'Replace "change-me" in {name}:') as caught:
        read_settings(monkeypatch, {name: value})
    assert value not in str(caught.value)


@pytest.mark.parametrize("name", SECRETS)
def test_settings_refuse_a_short_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = f"{name} has 31 characters, and must have at least 32"
    with pytest.raises(ImproperlyConfigured, match=message):
        read_settings(monkeypatch, {name: "x" * 31})
    read_settings(monkeypatch, {name: "x" * 32})


@pytest.mark.parametrize("name", ["SECRET_KEY", "TOKEN_PEPPER_2026", "DATABASE_URL", "REDIS_URL"])
def test_settings_need_these_variables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"Set {name} to the same value"):
        read_settings(monkeypatch, {name: ""})


def test_check_deploy_reports_nothing(tmp_path: Path) -> None:
    variables = read_environment("site.env.example")
    # Reading its settings would need the Redis of the audit.
    del variables["AUDIT_REDIS_URL"]
    done = subprocess.run(
        [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"],
        cwd=ROOT,
        env={**variables, "PATH": os.environ["PATH"], "DATABASE_URL": f"sqlite:///{tmp_path}/db"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# The page.


def test_the_page_names_every_file() -> None:
    text = PAGE.read_text()
    programs = {
        "__init__.py",
        "commands.py",
        "load.py",
        "outcome.py",
        "servers.py",
        "trial.py",
        "units.py",
    }
    files = {path.name for path in FOLDER.iterdir() if path.is_file()} - programs
    assert [name for name in sorted(files) if f"`{name}`" not in text] == []
    services = {f"tokenauth-{name}" for name in SERVICES}
    assert [name for name in sorted(services) if name not in text] == []


def test_cron_runs_the_same_commands() -> None:
    [block] = re.findall(r"^```\n(RUN=.*?)^```$", PAGE.read_text(), re.M | re.S)
    lines = [line for line in block.splitlines() if line and not line.startswith(("#", "RUN="))]
    ran = [shlex.split(line.partition("$RUN ")[2].split(">")[0].split("<")[0]) for line in lines]
    users = {words[1]: line.split()[5] for words, line in zip(ran, lines, strict=True)}
    for words in ran:
        parse(words)
    services = [read_section(UNITS / f"tokenauth-{name}.service", "Service") for name in COMMANDS]
    assert users == dict(zip(COMMANDS, (service["User"] for service in services), strict=True))
    timed_commands = [read_unit(name).command for name in COMMANDS if name != "drain"]
    assert sorted(ran) == sorted([*timed_commands, ["tokenauth_audit", "drain", "--once"]])


# What the trial counts as lost.

RESTART = Outage(began=100, ended=200)
SEEN = [
    ("r1", "kept", 200, False, 0),
    ("r2", "kept", 201, True, 201),
    ("r3", "stolen", 200, False, 0),
    ("r4", "stolen", 401, False, 2),
    ("r5", "kept", 503, True, 150),
    ("r6", "kept", 500, False, 99),
    ("r7", "kept", 0, True, 150),
    *((f"g{number}", "kept", 200, False, 3) for number in range(16)),
]
GOOD = " ".join(f"g{number}" for number in range(16))


def answers(seen: list[tuple[str, str, int, bool, int]]) -> list[Answer]:
    """Return answers that took two seconds each."""
    return [
        Answer(
            request_id=name,
            caller=caller,
            began=began,
            ended=began + 2,
            status=status,
            writes=writes,
        )
        for name, caller, status, writes, began in seen
    ]


def result(*more: tuple[str, str, int, bool, int], late: tuple[int, ...] = (401, 401)) -> Result:
    """Return what clients saw, with some answers more."""
    return Result(answers=answers([*SEEN, *more]), after_revocation=[*late], outage=RESTART)


def stored(accepted: str = f"r1 r2 r3 {GOOD}", rejected: str = "r4", samples: str = "r2") -> Stored:
    return Stored(accepted=accepted.split(), rejected=rejected.split(), samples=samples.split())


def losses(result: Result, stored: Stored) -> dict[str, int]:
    return {name: number for name, number in find_losses(result, stored).items() if number}


def test_nothing_is_lost_if_every_answer_has_its_row() -> None:
    assert losses(result(), stored()) == {}
    numbers = describe(result(), stored())
    assert numbers["requests that were answered with success"] == 19
    assert (numbers["requests that were answered with 503"], numbers["cut connections"]) == (1, 1)
    assert numbers["502, 503, 504 and cut while PostgreSQL ran"] == 0


@pytest.mark.parametrize(
    ("given", "loss"),
    [
        ({"accepted": f"r2 r3 {GOOD}"}, "successes without an audit row"),
        ({"rejected": ""}, "401 without an audit row"),
        ({"samples": "r2 r7"}, "stored samples without an audit row"),
    ],
)
def test_losses_are_seen(given: dict[str, str], loss: str) -> None:
    assert losses(result(), stored(**given)) == {loss: 1}


def test_writes_that_are_not_stored_are_seen() -> None:
    assert losses(result(), stored(samples="")) == {
        "answered writes that are not stored": 1,
        "no stored sample": 1,
    }


@pytest.mark.parametrize("status", [200, 403, 429, 500])
def test_a_revoked_token_that_is_not_refused_is_seen(status: int) -> None:
    loss = "answers other than 401 to the revoked token"
    assert losses(result(late=(401, status, 401)), stored()) == {loss: 1}


def test_the_site_may_be_unavailable_to_a_revoked_token_but_must_refuse_it_once() -> None:
    assert losses(result(late=(503, 401)), stored()) == {}
    assert losses(result(late=(503, 503)), stored()) == {"no 401 to the revoked token": 1}


@pytest.mark.parametrize("status", [302, 400, 403, 404, 429, 500])
def test_statuses_that_nothing_explains_are_seen(status: int) -> None:
    loss = "answers with an unexpected status"
    assert losses(result(("x", "kept", status, False, 5)), stored()) == {loss: 1}


@pytest.mark.parametrize(("began", "count"), [(97, 1), (99, 0), (150, 0), (199, 0), (201, 1)])
def test_only_the_restart_explains_500(began: int, count: int) -> None:
    found = find_losses(result(("x", "kept", 500, False, began)), stored())
    assert found["answers with an unexpected status"] == count


@pytest.mark.parametrize("began", [5, 150, 205])
def test_nothing_explains_401_to_the_token_that_stays_valid(began: int) -> None:
    found = losses(result(("x", "kept", 401, False, began)), stored(rejected="r4 x"))
    assert found == {"answers with an unexpected status": 1}


@pytest.mark.parametrize("status", [0, 502, 503, 504])
def test_one_of_ten_answers_may_be_unavailable_while_postgresql_runs(status: int) -> None:
    more = [(f"x{number}", "kept", status, True, 5) for number in range(4)]
    loss = "too many 502, 503, 504 and cut connections"
    assert losses(result(*more[:2]), stored()) == {}
    assert losses(result(*more), stored()) == {loss: 2}
    assert describe(result(*more), stored())["502, 503, 504 and cut while PostgreSQL ran"] == 4


def test_a_restart_explains_any_number_of_503() -> None:
    more = [(f"x{number}", "kept", 503, True, 150) for number in range(100)]
    assert losses(result(*more), stored()) == {}


def test_a_site_that_never_works_is_seen() -> None:
    nothing = Result(answers=answers([("x", "kept", 503, True, 0)]), after_revocation=[503])
    assert losses(nothing, stored(accepted="", rejected="", samples="")) == {
        "no stored sample": 1,
        "no 401 to the revoked token": 1,
        "too many 502, 503, 504 and cut connections": 1,
        "no success before the token was revoked": 1,
        "no success after the restart": 1,
    }


# The commands and servers of the trial.


def ended(returncode: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], returncode, stdout="", stderr="")


def test_the_trial_runs_the_command_of_every_timer() -> None:
    assert sorted(commands.TIMED) == timed()


@pytest.mark.parametrize(("returncode", "failed"), [(0, 0), (1, len(commands.TIMED))])
def test_each_command_of_a_timer_runs_at_least_once(
    returncode: int, failed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = commands.Site(tmp_path, {})
    stop, stopped = threading.Event(), threading.Event()

    def run(_site: commands.Site, _unit: Unit) -> subprocess.CompletedProcess[str]:
        stop.set()
        stopped.wait()
        return ended(returncode)

    monkeypatch.setattr(commands.Site, "run", run)
    with site.timers(Outage()):
        stop.wait()
        # The block ends before the first command does.
        threading.Timer(0.05, stopped.set).start()
    assert set(site.runs) == set(commands.TIMED)
    faults = site.find_faults()
    assert faults["failed commands of timers"] == failed * site.runs["seal"]
    assert faults["commands of timers that never ran"] == 0


def test_commands_that_never_ran_are_seen(tmp_path: Path) -> None:
    site = commands.Site(tmp_path, {}, runs=Counter(["seal", "seal", "verify"]))
    assert site.find_faults()["commands of timers that never ran"] == len(commands.TIMED) - 2


def test_a_failure_during_the_outage_is_excused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, ran = commands.Site(tmp_path, {}), threading.Event()

    def run(_site: commands.Site, _unit: Unit) -> subprocess.CompletedProcess[str]:
        ran.set()
        return ended(1)

    monkeypatch.setattr(commands.Site, "run", run)
    with site.timers(Outage(began=0)):
        ran.wait()
    assert set(site.find_faults().values()) == {0}


def test_an_error_in_the_thread_of_the_timers_ends_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_site: commands.Site, _unit: Unit) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired("manage.py", 300)

    monkeypatch.setattr(commands.Site, "run", run)
    with (
        pytest.raises(subprocess.TimeoutExpired),
        commands.Site(tmp_path, {}).timers(Outage()),
    ):
        pass


def test_every_command_is_run_again_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_site: commands.Site, unit: Unit) -> subprocess.CompletedProcess[str]:
        return ended(int(unit.name in {"notify", "verify"}))

    monkeypatch.setattr(commands.Site, "run", run)
    assert sorted(commands.Site(tmp_path, {}).finish()) == ["notify", "verify"]


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [([], [7], RuntimeError), ([7], [7], SystemExit), ([7], [8], None)],
)
def test_a_killed_worker_must_be_replaced_by_another(
    before: list[int],
    after: list[int],
    error: type[BaseException] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("psycopg")
    servers = import_module("project.deployment.servers")
    monkeypatch.setattr("benchmarks.harness.killed_servers.START_SECONDS", 0.2)
    found, killed = list(before), list[int]()

    def kill(pids: set[int]) -> None:
        killed.extend(pids)
        found[:] = after

    machine = servers.Gunicorn(tmp_path / "machine")
    machine.process = SimpleNamespace(pid=1)
    monkeypatch.setattr(servers, "children", lambda _pid: found)
    monkeypatch.setattr(servers, "kill", kill)
    monkeypatch.setattr(machine, "is_ready", lambda: True)
    with pytest.raises(error) if error else nullcontext():
        machine.kill_worker()
    assert killed == before
