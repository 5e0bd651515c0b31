"""The checks of whether audit rows are on disk when the audit promises it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from django.core.checks import run_checks
from django.db import connection
from pytest_django import Settings

from tests.postgresql import sql
from tokenauth.checks.durability import check_durability, check_order

on_postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="only PostgreSQL has synchronous_commit"
)
pytestmark = pytest.mark.django_db


class Apart:
    """A router that keeps users in a database of their own."""

    def db_for_write(self, model: type, **_hints: object) -> str | None:
        return "users" if model.__name__ == "User" else None


def deploy_messages() -> list[str]:
    found = run_checks(tags=["tokenauth"], include_deployment_checks=True)
    return [message.msg for message in found if message.id == "tokenauth.E030"]


def test_a_server_that_waits_is_clean() -> None:
    assert deploy_messages() == []


@on_postgresql
def test_synchronous_commit_that_is_off_is_an_error(configure: Callable[..., None]) -> None:
    sql("SET LOCAL synchronous_commit = off")
    [message] = deploy_messages()
    assert "'default' has synchronous_commit=off" in message
    configure(AUDIT_SYNCHRONOUS_COMMIT=False)
    assert deploy_messages() == []


@contextmanager
def lazy_mariadb() -> Iterator[None]:
    sql("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    try:
        yield
    finally:
        sql("SET GLOBAL innodb_flush_log_at_trx_commit = 1")


@pytest.mark.skipif(connection.vendor != "mysql", reason="the setting is MariaDB's")
def test_a_mariadb_that_does_not_wait_is_an_error() -> None:
    with lazy_mariadb():
        [message] = deploy_messages()
    assert "innodb_flush_log_at_trx_commit=2" in message


def test_a_database_that_cannot_be_asked_is_reported_elsewhere(database_down: None) -> None:
    assert check_durability() == []


@on_postgresql
def test_effects_in_another_database_are_a_warning(
    configure: Callable[..., None], settings: Settings
) -> None:
    settings.DATABASE_ROUTERS = [f"{__name__}.Apart"]
    assert check_order() == []
    configure(AUDIT_SYNCHRONOUS_COMMIT=False)
    [message] = check_order()
    assert message.id == "tokenauth.W035"
    assert "can write to 'users'" in message.msg
    settings.DATABASE_ROUTERS = []
    assert check_order() == []
