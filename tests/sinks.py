"""A sink of a project's own, as tests want it."""

from __future__ import annotations

from typing import ClassVar

from tokenauth.audit.rows import Row


class ListSink:
    """Keeps rows in memory; fails for the events in ``failing``."""

    rows: ClassVar[list[Row]] = []
    failing: ClassVar[dict[str, Exception]] = {}

    def write(self, *rows: Row) -> None:
        """Keep ``rows``, or raise what was asked for."""
        for row in rows:
            if error := self.failing.get(row.event):
                raise error
        self.rows.extend(rows)


def written() -> list[tuple[str, int]]:
    """Return event and count of each row that the sink was given."""
    return [(row.event, row.count) for row in ListSink.rows]
