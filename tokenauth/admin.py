"""Admin."""
from django.contrib import admin
from tokenauth.models import AuditEvent, Token
admin.site.register(Token)
admin.site.register(AuditEvent)
