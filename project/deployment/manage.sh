#!/bin/sh
# Runs manage.py with the environment of the site, for cron and for people. The user who runs it
# decides what it may do in the database: "tokenauth" as much as the site, "tokenauth-audit" what
# the commands of the audit need, and root everything.
#   sudo -u tokenauth /srv/tokenauth/project/deployment/manage.sh tokenauth list
set -eu
set -a
for name in site audit owner; do
    if [ -r "/etc/tokenauth/$name.env" ]; then . "/etc/tokenauth/$name.env"; fi
done
set +a
cd /srv/tokenauth
exec .venv/bin/python manage.py "$@"
