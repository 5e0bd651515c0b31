"""API tokens for Django and DRF: hashed, scoped, managed in the admin, audited."""

__version__ = "0.1.0"
