"""What the machine of ``test_lifecycle_machine`` chooses from: actions, and values for their arguments."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from tests.lifecycle_model import COVERED_NETWORKS, COVERED_SCOPES, DAY, HOUR, PEOPLE, RATES

Choice = Callable[[Random], Any]
ADDRESSES = {"": "203.0.113.7", "10.0.0.0/8": "10.9.9.9", "10.1.0.0/16": "10.1.9.9"}
STOPS = ("revoke", "disable", "enable")
EVENTS = {"revoke": "token.revoked", "disable": "token.disabled", "enable": "token.enabled"}


def one_of(*values: Any) -> Choice:
    return lambda random: random.choice(values)


def maybe(choice: Choice) -> Choice:
    return lambda random: choice(random) if random.random() < 0.4 else None


def some_of(*values: Any) -> Choice:
    return lambda random: frozenset(random.sample(values, random.randrange(4)))


numbers = one_of(*range(30))
kinds = one_of("code", "command", *PEOPLE, *["token"] * 5)
operations = one_of(*STOPS)
scopes = some_of(*COVERED_SCOPES)
networks = one_of(*COVERED_NETWORKS)
rates = one_of(*RATES)
lives = one_of(None, HOUR, 5 * DAY, 9 * DAY, 11 * DAY)
clients = one_of("bot", "BOT", "jo", "eva")
owners = one_of(None, *PEOPLE)
twists = one_of("nothing", "scopes", "scopes", "network", "rate", "life", "owner")

ACTIONS: list[tuple[str, dict[str, Choice]]] = []


def action(**arguments: Choice) -> Callable[[Callable[..., None]], Any]:
    """Have the machine call a method with such arguments."""

    def register(method: Callable[..., None]) -> Callable[..., None]:
        # Tokens' own rights have the most limits to come close to.
        weight = {"issue_by_token": 3, "change": 3}.get(method.__name__, 1)
        ACTIONS.extend([(method.__name__, arguments)] * weight)
        return method

    return register
