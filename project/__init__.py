"""The example site: a small API protected by ``tokenauth``."""
