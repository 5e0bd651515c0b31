"""The site as a server runs it; the environment says for whom (see ``served.py``)."""

import json
import os

from django.core.wsgi import get_wsgi_application

from harness import redis_server, site
from harness.contenders import contenders

VARIABLE = "TOKENAUTH_BENCHMARKS_SITE"

_wanted = json.loads(os.environ[VARIABLE])
_contender = next(one for one in contenders(redis_server.SINK) if one.key == _wanted["contender"])
site.configure(
    {"default": _wanted["database"]}, redis_url=_wanted["redis_url"], **_contender.settings
)
application = get_wsgi_application()
