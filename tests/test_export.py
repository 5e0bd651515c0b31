"""The audit as a stream of text: complete, in order, in constant memory, and safe to open."""

from __future__ import annotations

import csv
import json
import subprocess
import tracemalloc
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Write
from tests.test_verification import BAD_VALUES, spoil
from tests.thorough import thorough
from tokenauth.audit import export as module
from tokenauth.audit import stored
from tokenauth.audit.export import EXPORTED_COLUMNS, export
from tokenauth.audit.rows import make_row
from tokenauth.client_info import ClientInfo
from tokenauth.models import AuditEvent, Event

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)
LONG = "'" + "9" * 5_000 + "'"


def text_of(**options: Any) -> str:
    return "".join(text for text, _ in export(**{"using": "default", "as_csv": False, **options}))


def json_rows(**options: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text_of(**options).splitlines()]


def csv_rows(**options: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text_of(as_csv=True, **options))))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "ROWS_PER_READ", 3)


def test_columns() -> None:
    assert EXPORTED_COLUMNS[:4] == ("id", "event_id", "at", "event")
    assert "xid" not in EXPORTED_COLUMNS
    assert len(EXPORTED_COLUMNS) == 21


def test_json_lines_are_the_rows(write: Write) -> None:
    write(1, user_agent="naïve 😀", details={"b": [1, None], "a": "ü"}, ip="2001:db8::7", count=3)
    write(1, ip=None)
    rows = json_rows()
    stored = AuditEvent.objects.order_by("id").values(*EXPORTED_COLUMNS)
    assert [list(row) for row in rows] == [list(EXPORTED_COLUMNS)] * 2
    assert rows == [
        {**row, "event_id": str(row["event_id"]), "at": row["at"].isoformat()} for row in stored
    ]
    assert text_of().isascii()
    assert text_of().endswith("}\n")


def test_csv_is_the_rows(write: Write) -> None:
    write(1, user_agent='a,b;"c" 😀', details={"b": [1], "a": "ü"}, count=3)
    write(1, ip=None)
    rows = csv_rows()
    for read, row in zip(
        rows, AuditEvent.objects.order_by("id").values(*EXPORTED_COLUMNS), strict=True
    ):
        assert list(read) == list(EXPORTED_COLUMNS)
        assert json.loads(read["details"]) == row["details"]
        plain = {**row, "at": row["at"].isoformat(), "details": read["details"]}
        assert read == {name: "" if v is None else str(v) for name, v in plain.items()}
    assert "\r" not in text_of(as_csv=True)


def test_an_empty_audit() -> None:
    assert list(export(using="default", as_csv=False)) == []
    assert list(export(using="default", as_csv=True)) == [(",".join(EXPORTED_COLUMNS) + "\n", 0)]
    assert text_of(since=timezone.now()) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t'=1"),
        ("\r=1", "'\r'=1"),
        ("\n=1", "'\n'=1"),
        ("\ta", "'\ta"),
        (' "=1', "' \"=1"),
        ("\uff1d1", "'\uff1d1"),
        ("\uff0b1", "'\uff0b1"),
        ("\uff0d1", "'\uff0d1"),
        ("\uff20A", "'\uff20A"),
        ("a=1", "a=1"),
        ("'=1", "'=1"),
        ("a\r=1", "a\r'=1"),
        ("a\n=1", "a\n'=1"),
        ("a;=cmd()", "a;'=cmd()"),
        ("a|-1;@b\t+1", "a|'-1;'@b\t'+1"),
        ('a; "=1', "a; \"'=1"),
        ("a;\uff1d1", "a;'\uff1d1"),
        ("a; b=1 -1 (+http://x/)", "a; b=1 -1 (+http://x/)"),
        ("", ""),
    ],
)
def test_formulas_are_text(text: str, shown: str, write: Write) -> None:
    write(1, user_agent=text, client_id=text)
    written = text_of(as_csv=True)
    [row] = csv.DictReader(StringIO(written, newline=""))
    assert (row["user_agent"], row["client_id"]) == (shown, shown)
    assert shown.replace('"', '""') in written
    [row] = json_rows()
    assert row["user_agent"] == text


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_NONE])
@pytest.mark.parametrize("separator", [";", "\t", "|"])
@settings(suppress_health_check=list(HealthCheck), max_examples=100)
@given(
    texts=st.lists(
        st.text(alphabet=" \"'a,;|\t\r\n=+-@\uff1d1", max_size=9), min_size=1, max_size=3
    )
)
def test_no_separator_yields_a_formula(separator: str, quoting: int, texts: list[str]) -> None:
    details = json.dumps({text: text for text in texts})
    row = dict(zip(EXPORTED_COLUMNS, [*texts, *[""] * 21], strict=False)) | {"details": details}
    # A cell is what a spreadsheet sees, which opens the file with a separator that isn't ours.
    lines = StringIO(module._csv([row]), newline="").read().splitlines(keepends=True)
    reader: Any = csv.reader(lines, delimiter=separator, quoting=quoting)  # type: ignore[arg-type]
    cells = [cell.lstrip(' "') for cells in reader for cell in cells]
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\uff1d"))] == []


@pytest.mark.parametrize("as_csv", [False, True])
def test_all_rows_come_once_and_in_order(as_csv: bool, write: Write, small_batches: None) -> None:
    write(7)
    parts = list(export(using="default", as_csv=as_csv))
    assert [count for _, count in parts if count] == [3, 3, 1]
    ids = [int(row["id"]) for row in (csv_rows() if as_csv else json_rows())]
    assert ids == sorted(AuditEvent.objects.values_list("id", flat=True))


@pytest.mark.parametrize("count", [3, 6])
def test_a_whole_number_of_batches(count: int, write: Write, small_batches: None) -> None:
    write(count)
    assert len(json_rows()) == count


def test_since_is_about_the_time_not_the_order(write: Write, small_batches: None) -> None:
    now = timezone.now()
    ages = [5, 0, 3, 1, 5, 2, 2, 5, 0]
    for age in ages:
        write(1, at=now - age * HOUR)
    ids = list(AuditEvent.objects.order_by("id").values_list("id", flat=True))
    for limit in range(7):
        expected = [pk for pk, age in zip(ids, ages, strict=True) if age <= limit]
        assert [row["id"] for row in json_rows(since=now - limit * HOUR)] == expected
    assert [row["id"] for row in json_rows()] == ids


def test_it_ends_however_fast_rows_come(write: Write, small_batches: None) -> None:
    write(4)
    ids = []
    for text, _ in export(using="default", as_csv=False):
        ids += [json.loads(line)["id"] for line in text.splitlines()]
        write(5)
        assert len(ids) < 100
    assert ids == sorted(AuditEvent.objects.values_list("id", flat=True))[:4]


def test_a_row_that_is_committed_meanwhile_harms_nothing(write: Write, small_batches: None) -> None:
    """Ids are given out in order, but not committed in it."""
    write(6)
    first, *_, last = AuditEvent.objects.order_by("id").values_list("id", flat=True)
    late = make_row(Event.AUTH_ACCEPTED, ClientInfo()).as_event()
    parts = export(using="default", as_csv=False)
    ids = [json.loads(line)["id"] for line in next(parts)[0].splitlines()]
    late.id = -1  # Not 0, which MariaDB takes for none.
    late.save()
    ids += [json.loads(line)["id"] for text, _ in parts for line in text.splitlines()]
    assert ids == list(range(first, last + 1))


@thorough
@pytest.mark.parametrize("as_csv", [False, True])
def test_memory_does_not_grow_with_the_rows(
    as_csv: bool, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "ROWS_PER_READ", 20)

    def peak() -> int:
        tracemalloc.start()
        try:
            for _ in export(using="default", as_csv=as_csv):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    write(40, user_agent="x" * 300)
    few = peak()
    write(360, user_agent="x" * 300)
    assert peak() < 1.5 * few


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("as_csv", [False, True])
@pytest.mark.parametrize(("column", "value"), [*BAD_VALUES, ("details", LONG)], ids=str)
def test_a_row_that_cannot_be_read_stops_nothing(
    as_csv: bool, column: str, value: str, write: Write, small_batches: None
) -> None:
    write(7, details={"a": 1})
    ids = list(AuditEvent.objects.order_by("id").values_list("id", flat=True))
    spoil(AuditEvent._meta.db_table, column, value, f"id = {ids[4]}")
    parts = list(export(using="default", as_csv=as_csv))
    "".join(text for text, _ in parts).encode()
    assert sum(count for _, count in parts) == 7
    read: list[dict[str, Any]] = [*(csv_rows() if as_csv else json_rows())]
    assert [int(row["id"]) for row in read] == ids
    assert all(row["path"] == "/x/" for row in read)
    if column == "details":
        assert value.strip("'")[:100] in str(read[4]["details"])
        assert read[3]["details"] == ('{"a": 1}' if as_csv else {"a": 1})


@pytest.mark.parametrize("as_csv", [False, True])
def test_times_have_their_offset_whatever_the_settings(
    as_csv: bool, write: Write, settings: Any
) -> None:
    settings.USE_TZ, settings.TIME_ZONE = False, "Europe/Berlin"
    write(1, at=datetime(2026, 1, 31, 12))  # noqa: DTZ001 - as such a site has it
    with timezone.override("Asia/Tokyo"):
        [row] = csv_rows() if as_csv else json_rows()
    assert row["at"] == "2026-01-31T12:00:00+01:00"


def test_other_databases_are_asked_for_by_name(write: Write) -> None:
    with pytest.raises(Exception, match="nowhere"):
        text_of(using="nowhere")


# As a command, in a process of its own.


@thorough
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
)
def test_any_locale_will_do(environment: dict[str, str], processes: Any, write: Write) -> None:
    write(1, user_agent="naïve 😀")
    code, out, err = processes.run("tokenauth_audit", "export", "--format", "csv", **environment)
    assert (code, err) == (0, "")
    [row] = csv.DictReader(StringIO(out))
    assert row["user_agent"] == "naïve 😀"


@thorough
@pytest.mark.django_db(transaction=True)
def test_a_reader_that_has_enough_is_no_error(processes: Any, write: Write) -> None:
    write(600, user_agent="x" * 300)  # More than a pipe and `head` take.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with processes.start("tokenauth_audit", "export", "--format", "csv", **pipes) as process:
        with subprocess.Popen(
            ["head", "-n", "1"], stdin=process.stdout, stdout=subprocess.PIPE, text=True
        ) as head:
            process.stdout.close()
            process.stdout = None
            out, _ = head.communicate(timeout=180)
        _, err = process.communicate(timeout=180)
    assert (process.returncode, err) == (0, "")
    assert out == ",".join(EXPORTED_COLUMNS) + "\n"
