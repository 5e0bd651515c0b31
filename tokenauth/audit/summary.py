"""Filling the summary: how many audit rows each hour has, by token, client, address and so on.

Rows are counted once they are final, in blocks of ids, each in one transaction with the position
after it. A row belongs to the hour of its own time, also if it was drained from Redis later.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from time import monotonic
from typing import Any, NamedTuple

from django.db import Error as DatabaseFailure
from django.db import OperationalError, connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, F, Max, Min, Sum

from tokenauth.audit.cursors import Cursor, find_next, open_window, read_position
from tokenauth.audit.hours import by_hour, read_hour
from tokenauth.client_info import address_key
from tokenauth.exceptions import SealError, SummaryBusy
from tokenauth.models import OTHER, AuditEvent, AuditPosition, AuditSummary, SummaryFacet
from tokenauth.models.charsets import Exact
from tokenauth.models.tokens import bounded_wait

logger = logging.getLogger("tokenauth")

HOUR = timedelta(hours=1)
LAG = timedelta(minutes=10)
"""How old rows must be to be counted, where transactions have no numbers."""
ROWS_PER_BLOCK = 20_000
"""How many ids are counted in one transaction."""
SECONDS_TO_OPEN = 1.0
"""How long ``catch_up`` looks for the first row that is not counted."""
MOST_VALUES = 1_000
"""How many values are kept apart per facet, event and hour. At twice as many, the less frequent
ones are counted as "other"."""
POSITION = "summary"
_SQLITE_BUSY = {5, 6}
"""SQLITE_BUSY and SQLITE_LOCKED. Not from ``sqlite3``, which not every Python has."""
_HOURS_PER_QUERY = 500
_HOURS_PER_RECOUNT = 24

_COLUMNS = [
    field.column or "" for field in AuditSummary._meta.concrete_fields if not field.primary_key
]


class Counted(NamedTuple):
    """What a row of the summary counts, besides its hour."""

    facet: str
    event: str
    token_id: str
    value: str

    @property
    def digest(self) -> str:
        """The key of the row within its facet and hour."""
        text = "\0".join(self[1:]).encode("utf-8", "surrogatepass")
        return blake2b(text, digest_size=16).hexdigest()


Tally = dict[tuple[datetime, Counted], list[int]]
"""Hour and what is counted → how often, the lowest and the highest id."""


def summarise(*, using: str, is_bounded: bool = False) -> Iterator[int]:
    """Count the rows that are final, in blocks; give the number of each once it is committed.

    A caller that stops early loses nothing: the next call continues. Rows that become final
    meanwhile are left to the next call. ``is_bounded`` limits how many rows each block reads. Raises
    SummaryBusy if another process is summarising, and SealError if the database was restored from
    elsewhere and is being written to.
    """
    is_last = False
    while True:
        with _locked(using) as cursor:
            window: Cursor | None = cursor
            if not cursor.window and not is_last:
                seconds = SECONDS_TO_OPEN if is_bounded else None
                is_first, is_last = cursor == Cursor(), True
                window = open_window(cursor, using, is_first=is_first, lag=LAG, seconds=seconds)
            if window is None or not window.window:
                return
            count, after = _count_block(window, using, is_bounded=is_bounded)
            _positions(using).update(cursor=str(after))
        yield count


def catch_up(*, using: str, seconds: float = 1.0) -> bool:
    """Summarise for about ``seconds`` at most; return whether all final rows are counted.

    Never waits for another process, and never raises because the summary can't be written.
    """
    end = monotonic() + seconds
    try:
        for _count in summarise(using=using, is_bounded=True):
            if monotonic() >= end:
                return False
    except SummaryBusy:
        return False
    except (SealError, DatabaseFailure) as error:
        logger.warning("the summary of the audit could not be filled: %s", error)
        return False
    return True


def start_over(*, using: str) -> None:
    """Empty the summary, so that ``summarise`` counts all rows again; raises SummaryBusy."""
    with _locked(using):
        _forget_all(using)


def recount(*, before: datetime, using: str) -> None:
    """Count the hours that begin before ``before`` again, after rows were pruned.

    Waits while another process is summarising.
    """
    blocks = AuditSummary.objects.using(using).filter(facet=SummaryFacet.IDS.value)
    old = blocks.filter(hour__lt=before).order_by("hour")
    hours = list(old.values_list("hour", flat=True).distinct())
    for start in range(0, len(hours), _HOURS_PER_RECOUNT):
        few = hours[start : start + _HOURS_PER_RECOUNT]
        with _locked(using, wait=True) as cursor:
            gone = _delete_gone(few, using)
            for hour in _find_changed([one for one in few if one not in gone], cursor, using):
                _recount_hour(hour, cursor, using)


def _delete_gone(hours: list[datetime], using: str) -> set[datetime]:
    """Delete the summary of those of ``hours`` of which no row is left; return them."""
    oldest = AuditEvent.objects.using(using).aggregate(oldest=Min("id"))["oldest"]
    summaries = AuditSummary.objects.using(using).filter(
        facet__in=SummaryFacet.values, hour__in=hours
    )
    ends = summaries.filter(facet=SummaryFacet.IDS.value).values("hour").order_by()
    last_ids = ends.annotate(last=Max("last_id")).values_list("hour", "last")
    gone = {hour for hour, last in last_ids if oldest is None or last < oldest}
    _delete(summaries.filter(hour__in=gone), using)
    return gone


def _find_changed(hours: list[datetime], cursor: Cursor, using: str) -> list[datetime]:
    """Return those of ``hours``, which are in order, that have fewer rows than were counted."""
    if not hours:
        return []
    summaries = AuditSummary.objects.using(using).filter(facet=SummaryFacet.IDS.value)
    blocks = summaries.filter(hour__in=hours).order_by()
    ends = blocks.aggregate(first=Min("first_id"), last=Max("last_id"))
    rows = AuditEvent.objects.using(using).filter(
        cursor.covered(),
        id__range=(ends["first"], ends["last"]),
        at__gte=hours[0],
        at__lt=hours[-1] + HOUR,
    )
    left: Counter[datetime] = Counter()
    for text, count in by_hour(rows).values_list("hour").annotate(count=Count("id")):
        left[read_hour(text, using)] += count
    counted = blocks.values_list("hour").annotate(total=Sum("count"))
    return [hour for hour, total in counted if left[hour] != total]


def _recount_hour(hour: datetime, cursor: Cursor, using: str) -> None:
    summaries = AuditSummary.objects.using(using).filter(hour=hour)
    blocks = summaries.filter(facet=SummaryFacet.IDS.value)
    ranges = list(blocks.values_list("first_id", "last_id"))
    events = AuditEvent.objects.using(using).filter(
        cursor.covered(), at__gte=hour, at__lt=hour + HOUR
    )
    _delete(summaries.filter(facet__in=SummaryFacet.values), using)
    for one in ranges:
        tally = _tally(events.filter(id__range=one), using)
        _add(tally, using)
        _fold(tally, using)


def _forget_all(using: str) -> None:
    _delete(AuditSummary.objects.using(using).all(), using)
    _positions(using).update(cursor=str(Cursor()))


def _delete(rows: models.QuerySet[AuditSummary], using: str) -> None:
    # The model's own queryset refuses.
    deletable: Any = models.QuerySet(AuditSummary, query=rows.query.clone(), using=using)
    deletable._raw_delete(using)


def _positions(using: str) -> models.QuerySet[AuditPosition]:
    return models.QuerySet(AuditPosition, using=using).filter(name=POSITION)


@contextmanager
def _locked(using: str, *, wait: bool = False) -> Iterator[Cursor]:
    """Give the summary's cursor in a transaction that no other process is in.

    Raises SummaryBusy if another process is in it, unless ``wait`` says to wait.
    """
    take = _take_sqlite if connections[using].vendor == "sqlite" else _take
    with ExitStack() as stack:
        cursor = read_position(take(stack, using, wait=wait), using)
        if cursor is None:
            # The ids and transactions' numbers of the summary may be those of another database.
            _forget_all(using)
        yield cursor or Cursor()


def _take(stack: ExitStack, using: str, *, wait: bool) -> str:
    """Lock the position in a transaction that ends with ``stack``; return the text of its cursor."""
    AuditPosition.objects.using(using).get_or_create(
        name=POSITION, defaults={"cursor": str(Cursor())}
    )
    stack.enter_context(transaction.atomic(using=using))
    skip = not wait and connections[using].features.has_select_for_update_skip_locked
    texts = _positions(using).select_for_update(skip_locked=skip)
    text = texts.values_list("cursor", flat=True).first()
    if text is None:
        raise SummaryBusy
    return text


def _take_sqlite(stack: ExitStack, using: str, *, wait: bool) -> str:
    """Do the same as ``_take`` on SQLite, whose one lock for the file is taken by any change."""
    try:
        with nullcontext() if wait else bounded_wait(connections[using]):
            stack.enter_context(transaction.atomic(using=using))
            if not _positions(using).update(cursor=F("cursor")):
                AuditPosition(name=POSITION, cursor=str(Cursor())).save(using=using)
        return _positions(using).values_list("cursor", flat=True).get()
    except OperationalError as error:
        code = getattr(error.__cause__, "sqlite_errorcode", 0)
        if wait or code & 0xFF not in _SQLITE_BUSY:  # The other bits say more of the cause.
            raise
        raise SummaryBusy from error


def _count_block(window: Cursor, using: str, *, is_bounded: bool) -> tuple[int, Cursor]:
    """Count the next block of a window; return how many rows it has, and the cursor after it."""
    first = find_next(window, using, seconds=0 if is_bounded else None)
    if first is None:
        return 0, window.closed()
    last = (first // ROWS_PER_BLOCK + 1) * ROWS_PER_BLOCK - 1
    if window.window == "id":
        last = min(last, window.until)
    tally = _tally(replace(window, after=first - 1).rows_until(last, using), using)
    _add(tally, using)
    _fold(tally, using)
    counts = (
        count for (_, key), (count, *_ids) in tally.items() if key.facet == SummaryFacet.IDS.value
    )
    return sum(counts), replace(window, after=last)


def _tally(rows: models.QuerySet[AuditEvent], using: str) -> Tally:
    """Count ``rows``, which are of one block."""
    groups = (
        by_hour(rows)
        .values_list(
            "hour",
            "event",
            Exact("reason"),
            "token_id",
            Exact("client_id"),
            "ip",
            Exact("view_name"),
        )
        .annotate(count=Count("id"), first=Min("id"), last=Max("id"))
    )
    read = lru_cache(maxsize=1_000)(read_hour)
    tally: Tally = {}
    for text, *columns, count, first, last in groups:
        hour = read(text, using)
        for counted in (_block_of(first), *_facets(columns)):
            if (sums := tally.get((hour, counted))) is None:
                tally[hour, counted] = [count, first, last]
            else:
                sums[0] += count
                sums[1], sums[2] = min(sums[1], first), max(sums[2], last)
    return tally


def _block_of(row_id: int) -> Counted:
    return Counted("ids", "", "", str(row_id // ROWS_PER_BLOCK))


def _facets(columns: Sequence[Any]) -> Iterator[Counted]:
    """Give everything that a row counts for, besides its block. An empty column gives nothing."""
    event, reason, token_id, client_id, ip, view = columns
    address = address_key(ip) if ip else ""
    yield Counted("reason", event, "", reason)
    if client_id:
        yield Counted("client", event, "", client_id)
    if address:
        yield Counted("address", event, "", address)
    if view:
        yield Counted("view", event, "", view)
    if token_id:
        yield Counted("token", event, token_id, "")
        if address:
            yield Counted("token_address", event, token_id, address)
        if view:
            yield Counted("token_view", event, token_id, view)


def _add(tally: Tally, using: str) -> None:
    """Add ``tally`` to the stored rows."""
    if not tally:
        return
    connection = connections[using]
    field = AuditSummary._meta.get_field("hour")
    stored = {hour: field.get_db_prep_save(hour, connection) for hour, _key in tally}
    # In the order of the index: rows that are read together are stored together, for example those
    # of the overview's last 30 days.
    values = sorted(
        (key.facet, stored[hour], key.digest, *key[1:], *sums)
        for (hour, key), sums in tally.items()
    )
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # One statement: with one a row, most of the time passes between them.
            cursor.execute(
                _upsert(connection), [list(column) for column in zip(*values, strict=True)]
            )
        else:
            cursor.executemany(_upsert(connection), values)


def _upsert(connection: BaseDatabaseWrapper) -> str:
    """Return the statement that inserts a row of the summary, or adds to the one that is there.

    On PostgreSQL it takes a list for each column, with the values of many rows.
    """
    quote = connection.ops.quote_name
    table, columns = quote(AuditSummary._meta.db_table), ", ".join(map(quote, _COLUMNS))
    if connection.vendor == "mysql":
        conflict, new = "ON DUPLICATE KEY UPDATE", "VALUES({})"
    else:
        key = ", ".join(map(quote, ["facet", "hour", "digest"]))
        conflict, new = f"ON CONFLICT ({key}) DO UPDATE SET", "excluded.{}"
    least, greatest = ("MIN", "MAX") if connection.vendor == "sqlite" else ("LEAST", "GREATEST")
    count, first, last = map(quote, ["count", "first_id", "last_id"])
    rows = f"VALUES ({', '.join(['%s'] * len(_COLUMNS))})"
    if connection.vendor == "postgresql":
        types = [AuditSummary._meta.get_field(name).db_type(connection) for name in _COLUMNS]
        lists = ", ".join(f"%s::{kind}[]" for kind in types)
        rows = f"SELECT * FROM unnest({lists})"  # noqa: S608 - own names
    return (
        f"INSERT INTO {table} ({columns}) {rows} {conflict} "
        f"{count} = {table}.{count} + {new.format(count)}, "
        f"{first} = {least}({table}.{first}, {new.format(first)}), "
        f"{last} = {greatest}({table}.{last}, {new.format(last)})"
    )


def _fold(tally: Tally, using: str) -> None:
    """Count the less frequent values as "other", where the hours of ``tally`` have too many."""
    hours = sorted({hour for hour, _key in tally})
    for start in range(0, len(hours), _HOURS_PER_QUERY):
        crowded = (
            _named(using)
            .filter(hour__in=hours[start : start + _HOURS_PER_QUERY])
            .values_list("facet", "hour", "event")
            .annotate(values=Count("id"))
            .filter(values__gt=2 * MOST_VALUES)
        )
        for facet, hour, event, _values in list(crowded):
            _fold_one(facet, hour, event, using)


def _named(using: str) -> models.QuerySet[AuditSummary]:
    """Return the rows that have a value which may be counted as "other"."""
    folded = set(SummaryFacet.values) - {SummaryFacet.IDS.value, SummaryFacet.TOKEN.value}
    rows = AuditSummary.objects.using(using).filter(facet__in=folded)
    return rows.exclude(value__in=["", OTHER])


def _fold_one(facet: str, hour: datetime, event: str, using: str) -> None:
    rows = _named(using).filter(facet=facet, hour=hour, event=event)
    rare = rows.order_by("-count", "digest")[MOST_VALUES:]
    tally: Tally = {}
    ids: list[int] = []
    for pk, token_id, count, first, last in rare.values_list(
        "id", "token_id", "count", "first_id", "last_id"
    ):
        ids.append(pk)
        key = hour, Counted(facet, event, token_id, OTHER)
        sums = tally.setdefault(key, [0, first, last])
        sums[0] += count
        sums[1], sums[2] = min(sums[1], first), max(sums[2], last)
    _add(tally, using)
    for start in range(0, len(ids), _HOURS_PER_QUERY):
        part = ids[start : start + _HOURS_PER_QUERY]
        _delete(AuditSummary.objects.using(using).filter(pk__in=part), using)
