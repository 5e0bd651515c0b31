"""gunicorn behind nginx: ``gunicorn --config project/deployment/gunicorn.conf.py``."""

import os

wsgi_app = "project.wsgi:application"
bind = os.environ.get("BIND", "127.0.0.1:8000")
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
# While a thread waits for PostgreSQL or Redis, the others go on. Each keeps a connection of its own.
worker_class = "gthread"
threads = 4
# Longer than nginx keeps an idle connection: otherwise gunicorn may close one that nginx just used.
keepalive = 75
# TRUSTED_PROXIES alone decides which forwarded addresses are trusted.
forwarded_allow_ips = ""
control_socket_disable = True
