"""The example site under WSGI: ``gunicorn project.wsgi``."""

import os

from django.core.wsgi import get_wsgi_application

from project.startup import start

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
application = get_wsgi_application()
start()
