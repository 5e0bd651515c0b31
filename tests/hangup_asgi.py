"""The views of ``hangup_site`` under ASGI: ``uvicorn tests.hangup_asgi:application``."""

from django.core.asgi import get_asgi_application

application = get_asgi_application()
