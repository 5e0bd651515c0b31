"""Reading the bodies of requests."""

from __future__ import annotations

from typing import Any

from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser


class BodyParser(JSONParser):
    """JSON of a depth that Python can read; DRF answers deeper ones with 500."""

    def parse(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the body holds; raises ParseError, which is a 400."""
        try:
            return super().parse(*args, **kwargs)
        except RecursionError:
            raise ParseError("Nested too deeply.") from None
