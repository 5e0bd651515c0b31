"""Tamper evidence for the stored audit: seals, verification, retention and database roles.

Only management commands import this package; no request runs any of it.
"""
