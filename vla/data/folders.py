"""Folders that appear all at once: built beside their place under a hidden name, made durable, then renamed.

Two renamings replace an existing folder; a kill between them is undone by `recover`, which readers and writers call.
"""

import os
import shutil
from pathlib import Path


def hidden_sibling(folder: Path, role: str) -> Path:
    """A hidden name beside `folder`, on the same file system."""
    return folder.with_name(f".{folder.name}.{role}")


def recover(folder: Path) -> None:
    """Puts the old folder back after a replacement that was killed half way."""
    replaced = hidden_sibling(folder, "replaced")
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)


def replace_folder(complete: Path, folder: Path) -> None:
    """Makes `complete` durable and puts it in the place of `folder`, which may exist."""
    for path in complete.rglob("*"):
        sync(path)
    sync(complete)
    replaced = hidden_sibling(folder, "replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    complete.rename(folder)
    sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_tree(source: Path, destination: Path) -> None:
    """Copies a folder, by hard links where the file system has them. Only for files that nobody rewrites."""

    def link(path: str, target: str) -> None:
        try:
            os.link(path, target)
        except OSError:
            shutil.copy2(path, target)

    shutil.copytree(source, destination, copy_function=link)
