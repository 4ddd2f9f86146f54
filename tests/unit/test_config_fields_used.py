"""A setting nobody reads is a promise nobody keeps."""

import ast
from pathlib import Path

import megatron_aia
from megatron_aia.config.files import GROUP_OF_FIELD

PACKAGE = Path(megatron_aia.__file__).parent


def attributes_read(node: ast.AST) -> set[str]:
    return {
        part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Load)
    }


def test_every_field_is_read_outside_config():
    read: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if PACKAGE / "config" not in path.parents:
            read |= attributes_read(ast.parse(path.read_text()))

    # A property of the tree stands for the fields it is made of.
    tree = ast.parse((PACKAGE / "config" / "tree.py").read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name in read:
            read |= attributes_read(function)

    unread = sorted(set(GROUP_OF_FIELD) - read)
    assert not unread, f"fields that nothing outside config/ reads: {', '.join(unread)}"
