"""The addresses of the views."""

from harness.views import urlpatterns

__all__ = ["urlpatterns"]
