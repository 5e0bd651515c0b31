"""The example site's settings, with few failures allowed."""

from project.settings import *  # noqa: F403
from project.settings import TOKENAUTH as _TOKENAUTH

TOKENAUTH = {**_TOKENAUTH, "FAILURE_RATE": "5/d"}
