"""A setting nobody reads is a promise nobody keeps."""

import ast
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from support.config_reads import GROUPS, ConfigReads

import megatron_aia
from megatron_aia.config import Config

PACKAGE = Path(megatron_aia.__file__).parent
FIELDS = {(group.type.__name__, field.name) for group in fields(Config) for field in fields(group.type)}


def modules(*, of_config: bool) -> list[ast.Module]:
    paths = [p for p in PACKAGE.rglob("*.py") if (PACKAGE / "config" in p.parents) == of_config]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(paths)]


def unread(settings: set[tuple[str, str]], *more: str) -> set[tuple[str, str]]:
    """Return the settings that nothing outside config/ reads, nor the modules ``more``."""
    tree = ast.parse((PACKAGE / "config" / "tree.py").read_text(encoding="utf-8"))
    outside = [*modules(of_config=False), *map(ast.parse, more)]
    found = ConfigReads().read([tree_without_bodies(tree), *outside]).found
    return settings - found - behind_properties(tree, found)


def tree_without_bodies(tree: ast.Module) -> ast.Module:
    """Return the groups as declared: what their properties read does not count by itself."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in classes:
        ...
    return tree
