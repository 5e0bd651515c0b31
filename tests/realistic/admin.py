"""Data about tokens, on the token's page."""

from django.contrib import admin

from tests.realistic.models import TokenNote
from tokenauth.admin.tokens import TokenAdmin
from tokenauth.models import Token


class NoteInline(admin.StackedInline):  # type: ignore[type-arg]
    model = TokenNote


admin.site.unregister(Token)


@admin.register(Token)
class NotedTokenAdmin(TokenAdmin):
    inlines = [NoteInline]
