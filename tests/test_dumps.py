"""Which formats of ``dumpdata`` a sealed audit survives: docs/sealing.md names them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import call_command
from django.utils import timezone

from tests.audit_log import Configure, clear, look, named_rows, new_row, prepare, seal_all, verify

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize(
    ("kind", "survives"), [("xml", True), ("yaml", True), ("json", False), ("jsonl", False)]
)
def test_seals_after_dumpdata_and_loaddata(
    kind: str, survives: bool, configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if kind == "yaml":
        pytest.importorskip("yaml")
    prepare(configure, monkeypatch)
    rows = []
    for microsecond in (0, 123_000, 123_456):
        row = new_row()
        row.at = timezone.now().replace(microsecond=microsecond) - timedelta(hours=1)
        row.save()
        rows.append(row.pk)
    assert seal_all()
    path = tmp_path / f"audit.{kind}"
    call_command(
        "dumpdata", "tokenauth.auditevent", "tokenauth.auditseal", format=kind, output=str(path),
        verbosity=0,
    )  # fmt: skip
    clear()
    call_command("loaddata", str(path), verbosity=0)
    if survives:
        look()
    else:
        # JSON has milliseconds only.
        assert named_rows(verify()) == {rows[2]}
