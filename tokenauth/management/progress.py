"""A progress bar for long commands, where tqdm (extra ``[progress]``) is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

try:
    from tqdm import tqdm
except ImportError:  # An extra: without it there is no bar.
    tqdm = None  # type: ignore[assignment,misc]


@contextmanager
def show_progress(verb: str) -> Iterator[Callable[[int], object]]:
    """Give a function to call with the number of rows done since its last call.

    The bar is drawn on standard error, and only if that is a terminal.
    """
    if tqdm is None:
        yield lambda _count: None
        return
    with tqdm(desc=verb, unit=" rows", disable=None, leave=False) as bar:
        yield bar.update


def printing() -> AbstractContextManager[None]:
    """Hide the bar while something is printed, possibly on the same terminal."""
    return nullcontext() if tqdm is None else tqdm.external_write_mode()
