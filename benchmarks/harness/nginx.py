"""Starts an nginx with the configuration of a site."""

from __future__ import annotations

from pathlib import Path

_MAIN = """
daemon off;
worker_processes 2;
user root;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log {folder}/access.log;
    {temporary}
    include {folder}/site.conf;
}}
"""
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def prepare(folder: Path, site: str) -> list[str]:
    """Write the configuration to ``folder``, where nginx keeps all its files; return its options."""
    (folder / "site.conf").write_text(site)
    temporary = "\n".join(f"{name}_temp_path {folder}/{name};" for name in _TEMPORARY)
    (folder / "nginx.conf").write_text(_MAIN.format(folder=folder, temporary=temporary))
    return ["-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
