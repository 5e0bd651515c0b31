"""What every command of Django's takes, for verbs of ours too."""

from __future__ import annotations

import argparse
from collections.abc import Iterable


def add_base_options(verbs: Iterable[argparse.ArgumentParser]) -> None:
    """Let Django's own options stand behind a verb as well as before it.

    They have no defaults here, so what stands before the verb holds; and no help, which
    ``--help`` before the verb gives.
    """
    for verb in verbs:
        group = verb.add_argument_group(argument_default=argparse.SUPPRESS)
        for name in ("--settings", "--pythonpath"):
            group.add_argument(name, help=argparse.SUPPRESS)
        for name in ("--traceback", "--no-color", "--force-color"):
            group.add_argument(name, action="store_true", help=argparse.SUPPRESS)
        group.add_argument("-v", "--verbosity", type=int, choices=range(4), help=argparse.SUPPRESS)
