"""Parsers of request bodies."""

from __future__ import annotations

from typing import Any

from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser


class BodyParser(JSONParser):
    """Parses JSON, and rejects JSON that is nested too deeply, which DRF answers with 500."""

    def parse(self, *args: Any, **kwargs: Any) -> Any:
        """Return the parsed body. Raises ParseError, which DRF answers with 400."""
        try:
            return super().parse(*args, **kwargs)
        except RecursionError:
            raise ParseError("Nested too deeply.") from None
