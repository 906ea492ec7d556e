"""A real arm: `python -m scripts.robot <verb> [key=value ...]`. See --help.

A verb is a function of the composed config; a file with verbs ends in a table VERBS and is added here.
"""

import sys
from collections.abc import Callable

from omegaconf import DictConfig

from scripts import (
    robot_bus,
    robot_conformance,
    robot_deploy,
    robot_hwtest,
    robot_record,
    robot_serve,
    robot_setup,
)
from scripts.entry import entry
from vla.core.errors import unknown_name

VERBS: dict[str, Callable[[DictConfig], None]] = {
    **robot_bus.VERBS,
    **robot_setup.VERBS,
    **robot_record.VERBS,
    **robot_deploy.VERBS,
    **robot_serve.VERBS,
    **robot_hwtest.VERBS,
    **robot_conformance.VERBS,
}


def main(config: DictConfig) -> None:
    if config.verb not in VERBS:
        raise unknown_name("verb", str(config.verb), list(VERBS))
    VERBS[config.verb](config)


def run(argv: list[str]) -> None:
    """`argv` as typed: the verb, then overrides."""
    if argv and "=" not in argv[0] and not argv[0].startswith("-"):
        argv = [f"verb={argv[0]}", *argv[1:]]
    entry("robot", main, argv)


if __name__ == "__main__":
    run(sys.argv[1:])
