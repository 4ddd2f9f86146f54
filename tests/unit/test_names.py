"""A public name stands for one thing: whoever looks it up finds one definition."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

import megatron_aia

PACKAGE = Path(megatron_aia.__file__).parent

TAKE_TURNS = {"attend", "forward"}
"""Functions of attention kernels: one module may stand for another, so each has them."""


def public_names(source: str) -> Iterator[str]:
    """Yield classes, functions and aliases of types; constants are read with their module."""
    for node in ast.parse(source).body:
        name = ""
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            name = node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            alias = node.targets[0].id
            name = "" if alias.isupper() or alias.islower() else alias
        if name and not name.startswith("_"):
            yield name


def doubles(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names with several definitions, by the paths of their modules.

    The folders of model families say alike what is alike: together they count as one.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for path, source in sources.items():
        for name in public_names(source):
            if not (name in TAKE_TURNS and path.startswith("attention/")):
                found[name].append(path)
    return {name: paths for name, paths in found.items() if is_double(paths)}


def is_double(paths: Sequence[str]) -> bool:
    families = [path.split("/")[1] for path in paths if re.match(r"models/\w+/", path)]
    return len(set(families)) < len(families) or len(paths) - len(families) + bool(families) > 1


def test_a_public_name_is_defined_once() -> None:
    sources = {
        path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
        for path in PACKAGE.rglob("*.py")
    }
    assert not doubles(sources)


@pytest.mark.parametrize(
    ("paths", "source", "is_double"),
    [
        (("data/a.py", "data/b.py"), "class Row: ...", True),
        (("data/a.py", "models/b.py"), "def check_model(): ...", True),
        (("data/a.py", "shards/b.py"), "Row = list[int]", True),
        (("data/a.py", "shards/b.py"), "class _Row: ...", False),
        (("data/a.py", "shards/b.py"), "SIZE = 1", False),
        (("models/a/names.py", "models/b/names.py"), "def find_names(): ...", False),
        (("models/a/names.py", "models/a/other.py"), "def find_names(): ...", True),
        (("models/a/names.py", "models/names.py"), "def find_names(): ...", True),
        (("attention/a.py", "attention/b.py"), "def attend(): ...", False),
        (("attention/a.py", "attention/b.py"), "def cut(): ...", True),
        (("attention/a.py", "data/b.py", "aia/c.py"), "def attend(): ...", True),
    ],
)
def test_a_double_is_seen(paths: tuple[str, ...], source: str, is_double: bool) -> None:
    assert bool(doubles(dict.fromkeys(paths, source))) == is_double
