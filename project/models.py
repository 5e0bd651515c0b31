"""The one thing that the example site stores."""

from django.db import models


class Sample(models.Model):
    """A named note that belongs to the user or client that created it."""

    name = models.CharField(max_length=100)
    text = models.TextField(blank=True)
    owner = models.CharField(max_length=200, db_index=True, editable=False)
    """``request.user.pk`` as text: a user's key, or "client:<client_id>"."""
    client_id = models.CharField(max_length=150, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return self.name
