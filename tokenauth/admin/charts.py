"""Charts of figures as SVG, where pygal (extra ``[charts]``) is installed.

A chart is a separate document. It has no script and loads nothing, even if a label is hostile.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

from django.http import Http404, HttpResponse
from django.urls import reverse
from django.utils.translation import gettext as _

from tokenauth.admin.figures import Figure

try:
    import pygal
    from pygal.etree import etree
    from pygal.style import Style
except ImportError:  # An extra: without it there are only the tables.
    pygal = None

LABEL_LENGTH = 36
_WIDTH = 800
_HEIGHT = 300
_AROUND = 60
"""The height of what is above and below the bars of a ranking."""
_BAR = 24
_FONT_SIZE = 13
_LABELS_ON_AXIS = 8
_DROPPED = {"script", "title", "desc"}
"""Elements that pygal adds and that are removed: scripts for tooltips, and their texts."""
_UNSAFE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML may have."""

# Opaque, so that it is readable in a page with any theme.
_STYLE = """
svg { background: #ffffff; font: 13px monospace; }
text { fill: #333333; }
.graph > .background, .plot > .background { fill: #ffffff; }
.axis .line { fill: none; stroke: #767676; }
.axis .guide.line { stroke: #cccccc; }
.axis.x text, .no_data { text-anchor: middle; }
.axis.y text { text-anchor: end; }
.horizontal .axis.y .guide.line, .vertical .axis.x .guide.line { opacity: 0; }
.color-0 { fill: #2f7bbf; }
.color-1 { fill: #d4581a; }
@media (prefers-color-scheme: dark) {
  svg { background: #121212; }
  text { fill: #eeeeee; }
  .graph > .background, .plot > .background { fill: #121212; }
  .axis .guide.line { stroke: #444444; }
}
"""
_STYLE_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'; sandbox"
"""The Content-Security-Policy of a chart."""


def link(figure: Figure, site: Any, page: str, *args: object) -> Figure:
    """Return ``figure`` with the URL of its chart, if it has rows and pygal is installed."""
    if pygal is None or not figure.rows:
        return figure
    return replace(figure, chart_url=reverse(page, args=args, current_app=site.name))


def respond(makers: Mapping[str, Callable[[], Figure]], name: str) -> HttpResponse:
    """Return the chart of the figure with this name; raises Http404 for an unknown name."""
    if pygal is None or name not in makers:
        raise Http404
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
    return HttpResponse(draw(makers[name]()), content_type="image/svg+xml", headers=headers)


def draw(figure: Figure) -> bytes:
    """Return the chart of ``figure``: bars over time, or horizontal ones for a ranking."""
    kind = pygal.HorizontalBar if figure.is_ranking else pygal.StackedBar
    # The first bar of a horizontal chart is at the bottom.
    rows = figure.rows[::-1] if figure.is_ranking else figure.rows
    chart = kind(
        width=_WIDTH,
        height=_height_of(figure),
        css=(),
        js=(),
        explicit_size=True,
        legend_at_bottom=True,
        no_data_text=_("none"),
        no_prefix=True,
        style=Style(label_font_size=_FONT_SIZE, major_label_font_size=_FONT_SIZE),
        show_legend=not figure.is_ranking,
        show_minor_x_labels=figure.is_ranking,
        truncate_label=LABEL_LENGTH,
        value_formatter=_format_number,
        x_labels=[_shorten(row.label) for row in rows],
        x_labels_major_every=max(1, len(rows) // _LABELS_ON_AXIS),
    )
    for number, column in enumerate(figure.columns):
        chart.add(str(column), [row.counts[number] for row in rows])
    root = chart.render_tree()
    _clean(root)
    _name(root, figure)
    document: bytes = etree.tostring(root, encoding="utf-8")
    return document


def _height_of(figure: Figure) -> int:
    """Return the height in pixels: bars of a ranking are as thick as text, however many there are."""
    return _AROUND + _BAR * max(1, len(figure.rows)) if figure.is_ranking else _HEIGHT


def _format_number(number: float) -> str:
    # Counts are whole numbers, but a short axis has marks between them.
    return f"{number:,.0f}" if number == int(number) else ""


def _shorten(label: str) -> str:
    safe = _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", label)
    return safe if len(safe) <= LABEL_LENGTH else safe[: LABEL_LENGTH - 1] + "…"


def _clean(root: Any) -> None:
    """Remove scripts, comments and styles from pygal's document, and insert our own style."""
    for parent in list(root.iter()):
        if callable(parent.tag):  # A comment.
            continue
        parent.attrib.pop("style", None)
        for child in list(parent):
            tag = "comment" if callable(child.tag) else child.tag.rpartition("}")[2]
            if tag == "style":
                child.text = _STYLE
            elif tag == "comment" or tag in _DROPPED:
                parent.remove(child)


def _name(root: Any, figure: Figure) -> None:
    """Add a title and a description for screen readers."""
    root.attrib.pop("id", None)
    root.set("role", "img")
    root.set("aria-labelledby", "title desc")
    texts = [
        ("title", str(figure.title)),
        ("desc", _("The page that shows this chart has a table with the same numbers.")),
    ]
    for place, (tag, text) in enumerate(texts):
        element = etree.Element(tag, {"id": tag})
        element.text = text
        root.insert(place, element)
