"""System checks."""
CHECKS: list = []
