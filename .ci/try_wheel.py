"""Try the installed wheel: commands, mails, the admin in German, and the API."""

from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

from wheel_site import set_up

set_up()

from django.contrib.auth import get_user_model  # noqa: E402 - after setup
from django.contrib.staticfiles import finders  # noqa: E402
from django.core import mail  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.template.loader import get_template  # noqa: E402
from django.test import Client  # noqa: E402
from django.urls import reverse  # noqa: E402
from django.utils import translation  # noqa: E402
from django.utils.translation import gettext  # noqa: E402

import tokenauth  # noqa: E402
from tokenauth import services  # noqa: E402

ROOT = Path(tokenauth.__file__).parent


def try_commands(user: Any) -> None:
    """Issue a token that ends soon, and mail its owner."""
    options = ["--client", "wheel", "--user", user.username, "--ttl", "5d", "--json"]
    call_command("tokenauth", "issue", *options, stdout=StringIO(), stderr=StringIO())
    call_command("tokenauth", "notify")
    [message] = mail.outbox
    assert message.to == [user.email], message.to
    assert "wheel" in message.body, message.body


def try_admin(user: Any) -> None:
    """Open the pages of the admin; the German one is translated."""
    browser = Client()
    browser.force_login(user)
    token = services.issue(client_id="admin").token
    pages = [reverse(f"admin:{name}") for name in ("index", "tokenauth_overview")]
    pages += [
        reverse(f"admin:tokenauth_{name}", args=args)
        for name, args in {
            "token_changelist": (),
            "token_add": (),
            "token_change": (token.pk,),
            "token_rotate": (token.pk,),
            "token_revoke": (token.pk,),
            "auditevent_changelist": (),
        }.items()
    ]
    for page in pages:
        status = browser.get(page).status_code
        assert status == 200, (page, status)  # noqa: PLR2004
    page = reverse("admin:tokenauth_token_add")
    for language, differs in [("en", False), ("de", True)]:
        with translation.override(language):
            title = gettext("Issue token")
        assert (title != "Issue token") == differs, title
        text = browser.get(page, headers={"Accept-Language": language}).content.decode()
        assert title in text, title


def try_api() -> None:
    """Call the API with a token and without."""
    issued = services.issue(client_id="caller")
    header = {"Authorization": f"Bearer {issued.plaintext}"}
    url = reverse("tokenauth_api:current-token")
    assert Client().get(url, headers=header).json()["client_id"] == "caller"
    assert Client().get(url).status_code == 401  # noqa: PLR2004


def try_files() -> None:
    """Load every template and find every static file."""
    for path in (ROOT / "templates").rglob("*.*"):
        get_template(path.relative_to(ROOT / "templates").as_posix())
    for path in (ROOT / "static").rglob("*.*"):
        assert finders.find(path.relative_to(ROOT / "static").as_posix()), path
    assert (ROOT / "py.typed").is_file()
    for name in ("project", "tests", "docs"):
        assert not (ROOT.parent / name).exists(), name


owner = get_user_model().objects.create_superuser("jo", "jo@example.com", "unused")
try_commands(owner)
try_admin(owner)
try_api()
try_files()
call_command("migrate", "tokenauth", "zero", verbosity=0)
print("drf-tokenauth", metadata.version("drf-tokenauth"), "works")
