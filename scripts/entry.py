"""What every script shares: Hydra's start, one line for a user's mistake, exit status 0 only when the work was done."""

import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vla.core.errors import GrasplineError, unknown_name

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"


def entry(config_name: str, main: Callable[[DictConfig], None], argv: list[str] | None = None) -> None:
    """Composes `configs/<config_name>.yaml` with the command line's overrides and runs `main`.

    Args:
        config_name: a root file in `configs/`, named as the script.
        main: takes the composed config; raises GrasplineError for what the user can mend.
        argv: overrides; the command line's own when None.
    """
    overrides = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(overrides):
        print(_help(config_name))
        return
    os.environ.setdefault("MUJOCO_GL", "egl" if sys.platform == "linux" else "glfw")
    try:
        main(compose(config_name, overrides))
    except (GrasplineError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            sys.exit(f"error: the disk is full; what was finished is kept, free some space and run again ({error})")
        if isinstance(error, GrasplineError):
            sys.exit(f"error: {error}")
        raise
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to go on")


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """The config of a script. Raises UnknownNameError for a key or a group's option that does not exist."""
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        defaults = hydra.compose(config_name)
        # `policy` is a group to train (policy=tiny) and a plain value to evaluate (policy=outputs/run); Hydra takes any
        # key that has a folder for a group, so plain values are set here.
        plain = [each for each in overrides if _is_plain(defaults, _key(each))]
        try:
            config = hydra.compose(config_name, [each for each in overrides if each not in plain])
            for override in OverridesParser.create().parse_overrides(plain):
                OmegaConf.update(config, override.key_or_group, override.value())
            return config
        except (HydraException, OmegaConfBaseException) as error:
            raise _explain(error, defaults, overrides) from error


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _is_plain(defaults: DictConfig, key: str) -> bool:
    return (CONFIG_DIR / key).is_dir() and key in defaults and not OmegaConf.is_config(defaults[key])


def _explain(error: Exception, defaults: DictConfig, overrides: list[str]) -> GrasplineError:
    """Turns Hydra's account of a wrong override into one line with the nearest valid name."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group = CONFIG_DIR / key
        if group.is_dir() and not (group / f"{value}.yaml").exists() and not _is_plain(defaults, key):
            return unknown_name(key, value, [path.stem for path in group.glob("*.yaml")])
    for override in overrides:
        key = _key(override)
        if OmegaConf.select(defaults, key, default=error) is error and not (CONFIG_DIR / key).is_dir():
            return unknown_name("config key", key, _keys(defaults))
    return GrasplineError(re.sub(r"\s+", " ", str(error)))


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for name, value in config.items_ex(resolve=False):
        keys.append(f"{prefix}{name}")
        if isinstance(value, DictConfig):
            keys += _keys(value, f"{prefix}{name}.")
    return keys


def _help(config_name: str) -> str:
    """The root file's opening comment and its defaults: the comment teaches, the defaults show every key."""
    text = (CONFIG_DIR / f"{config_name}.yaml").read_text()
    groups = sorted(path.name for path in CONFIG_DIR.iterdir() if path.is_dir())
    options = "\n".join(
        f"  {group}= {' | '.join(sorted(path.stem for path in (CONFIG_DIR / group).glob('*.yaml')))}"
        for group in groups
    )
    return f"python -m scripts.{config_name} [key=value ...]\n\n{text}\nOptions of the groups:\n{options}\n"
