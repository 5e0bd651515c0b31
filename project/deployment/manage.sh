#!/bin/sh
# Runs manage.py with the environment of the site, for cron and for people. What it may do in the
# database depends on the user who runs it: "tokenauth" may do what the site may do, and
# "tokenauth-audit" may do what the commands of the audit need. root may do everything.
#   sudo -u tokenauth /srv/tokenauth/project/deployment/manage.sh tokenauth list
set -eu
set -a
for name in site audit owner; do
    if [ -r "/etc/tokenauth/$name.env" ]; then . "/etc/tokenauth/$name.env"; fi
done
set +a
cd /srv/tokenauth
exec .venv/bin/python manage.py "$@"
