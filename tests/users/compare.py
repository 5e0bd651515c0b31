"""Prints, for a token of a user of USER_MODEL: the user as the ORM reads it and as a view gets it."""

import json

import django

django.setup()

from django.contrib.auth import get_user_model  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.utils import timezone  # noqa: E402

from tokenauth import services  # noqa: E402
from tokenauth.admission import admit  # noqa: E402
from tokenauth.client_info import ClientInfo  # noqa: E402
from tokenauth.conf import make_transport  # noqa: E402
from tokenauth.credentials import Credential  # noqa: E402
from tokenauth.models import AuditEvent  # noqa: E402

call_command("migrate", run_syncdb=True, verbosity=0)
users = get_user_model()
names = [field.attname for field in users._meta.concrete_fields]
given = {"email": "jo@example.net", "full_name": "Jo", "username": "jo", "last_name": "Doe"}
made = users(**{name: text for name, text in given.items() if name in names})
made.last_login = timezone.now()
made.set_unusable_password()
made.save()
stored = users._default_manager.get(pk=made.pk)
token = services.issue(client_id="c", user=stored).plaintext
credential = Credential(text=token, transport=make_transport("X-Api-Key"))
found = admit(credential, ClientInfo()).user
print(
    json.dumps(
        {
            "stored": {name: str(getattr(stored, name)) for name in names},
            "found": {name: str(getattr(found, name)) for name in names},
            "audited": AuditEvent.objects.latest("id").user_id,
        }
    )
)
