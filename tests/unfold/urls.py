"""The example site, and beside it a site with tokenauth's own admin classes under the theme."""

from django.urls import path
from unfold.sites import UnfoldAdminSite

from project.urls import urlpatterns as _urlpatterns
from tokenauth.admin import AuditEventAdmin, TokenAdmin
from tokenauth.models import AuditEvent, Token

plain = UnfoldAdminSite(name="plain")
plain.register(Token, TokenAdmin)
plain.register(AuditEvent, AuditEventAdmin)

urlpatterns = [*_urlpatterns, path("plain/", plain.urls)]
