"""Parsers of request bodies with a limited size, which always read UTF-8."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from rest_framework.exceptions import ParseError
from rest_framework.parsers import FormParser, JSONParser, MultiPartParser


class _Bounded:
    """Enforces ``DATA_UPLOAD_MAX_MEMORY_SIZE``, which DRF's own parsers may ignore."""

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        """Return the parsed body. Raises ParseError or what Django raises for bodies too large."""
        # The charset in the content type isn't used: "zlib", for example, doesn't decode to text.
        context = {**parser_context, "encoding": "utf-8"}
        parse: Any = super().parse  # type: ignore[misc]
        try:
            return parse(BytesIO(context["request"]._request.body), media_type, context)
        except RecursionError:
            raise ParseError("Nested too deeply.") from None


class BoundedJSONParser(_Bounded, JSONParser):
    """Parses JSON."""


class BoundedFormParser(_Bounded, FormParser):
    """Parses a form."""


class BoundedMultiPartParser(_Bounded, MultiPartParser):
    """Parses a form in parts, as some clients send any form."""


PARSERS = [BoundedJSONParser, BoundedFormParser, BoundedMultiPartParser]
