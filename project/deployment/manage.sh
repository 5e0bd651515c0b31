#!/bin/sh
# Runs manage.py with the environment of the site, for cron and for people:
#   sudo -u tokenauth-audit /srv/tokenauth/project/deployment/manage.sh tokenauth list
set -eu
set -a
. /etc/tokenauth/site.env
if [ -r /etc/tokenauth/audit.env ]; then . /etc/tokenauth/audit.env; fi
set +a
cd /srv/tokenauth
exec .venv/bin/python manage.py "$@"
