"""The signal for code that reacts to audit rows, such as alarms.

``audited`` is sent for each row of this process, with AuditEvent as ``sender`` and a frozen
``tokenauth.audit.rows.Row`` as ``row``: for the row of a request as soon as the sink has it, for
the row of a change after its commit. The exceptions of receivers are logged, not raised.
"""

from __future__ import annotations

from typing import Any, NoReturn

from django.dispatch import Signal

audited = Signal()


def freeze(value: Any) -> Any:
    """Return a copy of JSON's values that equals ``value`` and can't be changed."""
    if isinstance(value, dict):
        return _FrozenDict((key, freeze(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return _FrozenList(map(freeze, value))
    return value


def _refuse(*_args: object, **_kwargs: object) -> NoReturn:
    raise TypeError("This is a frozen copy of an audit row; copy.deepcopy() makes one to change.")


class _FrozenDict(dict[str, Any]):
    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        # Copies and unpickles as an ordinary dictionary, which these two fill item by item.
        return dict, (dict(self),)


class _FrozenList(list[Any]):
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __reduce__(self) -> tuple[type, tuple[list[Any]]]:
        return list, (list(self),)
