"""A site whose admin has django-unfold's theme."""
