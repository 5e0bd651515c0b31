"""User models of all kinds: their key isn't their first column, or is another table's."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AbstractUser
from django.db import models


class Account(AbstractBaseUser):
    """A key of its own, declared after the base's columns; one with a per cent sign."""

    uid = models.UUIDField(primary_key=True, default=uuid.uuid4)
    email = models.CharField(max_length=100, unique=True, db_column="e%mail")
    is_active = models.BooleanField(default=True)
    USERNAME_FIELD = "email"


class Person(models.Model):
    """What a member is too."""

    full_name = models.CharField(max_length=100)


class Member(AbstractBaseUser, Person):
    """Its key is the other table's."""

    email = models.CharField(max_length=100, unique=True)
    is_active = models.BooleanField(default=True)
    USERNAME_FIELD = "email"


class Colleague(AbstractUser):
    """Django's user with another key."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)


class Nick(models.CharField):  # type: ignore[type-arg]  # Django's has none.
    """Text, of which there is some where the database has none."""

    def from_db_value(self, value: str | None, *_where: Any) -> str:
        return "nobody" if value is None else value


class Visitor(AbstractUser):
    """A column makes something of NULL."""

    nick = Nick(max_length=20, null=True)
