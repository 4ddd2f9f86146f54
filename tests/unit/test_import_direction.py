"""Imports point one way, so that every room can be read without the rooms behind it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "megatron_aia"

ORDER = (
    "config",
    "runtime",
    "aia",
    "attention",
    "shards",
    "data",
    "models",
    "checkpoint",
    "generation",
    "analysis",
    "evaluation",
    "measurement",
    "training",
)
"""A room may import the rooms before it."""

ALLOWED = {
    **{room: ORDER[:place] for place, room in enumerate(ORDER)},
    # A program of its own, which runs before there is a model; the families say what they read.
    "building": ("config", "runtime", "aia", "shards", "models"),
    # Also measures on records that are no shards yet.
    "measurement": (*ORDER[: ORDER.index("measurement")], "building"),
    "cli": ("config", "models"),
    "train": (*ORDER, "building", "cli"),
    "tools": (*ORDER, "building", "cli"),
}

OF_A_MODEL = ("building.sources.base", "building.convert_records")
"""A model's folder may also hold an input of the shard builder, which follows its protocol."""


def imported_modules(source: str) -> Iterator[str]:
    """Yield modules of this package that ``source`` imports, without the package's name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            if node.module != PACKAGE.name:
                names = [node.module or ""]
        else:
            continue
        yield from (
            name.removeprefix(f"{PACKAGE.name}.")
            for name in names
            if name.startswith(f"{PACKAGE.name}.")
        )


def model_of(path: Path) -> str | None:
    """Return the family of a file in a model's folder."""
    parts = path.relative_to(REPOSITORY).parts
    return parts[2] if parts[:2] == (PACKAGE.name, "models") and len(parts) > 3 else None


def room_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return parts[1] if parts[0] == PACKAGE.name else parts[0]


def source_files() -> list[Path]:
    files = [*PACKAGE.rglob("*.py"), *(REPOSITORY / "tools").glob("*.py")]
    return sorted(path for path in files if path.parent != PACKAGE or path.name != "__init__.py")


def against_direction(path: Path, source: str) -> set[tuple[str, str]]:
    """Return what ``path`` imports and may not."""
    room = room_of(path)
    allowed = (room, *ALLOWED[room], *(OF_A_MODEL if model_of(path) else ()))
    return {
        (path.relative_to(REPOSITORY).as_posix(), module)
        for module in imported_modules(source)
        if not any(f"{module}.".startswith(f"{name}.") for name in allowed)
    }


def test_every_room_has_a_place() -> None:
    assert {room_of(path) for path in source_files()} <= ALLOWED.keys()


def test_imports_point_one_way() -> None:
    found: set[tuple[str, str]] = set()
    for path in source_files():
        found |= against_direction(path, path.read_text(encoding="utf-8"))
    assert not found, "against the direction"


@pytest.mark.parametrize(
    ("file", "line", "is_fine"),
    [
        ("aia/loss.py", "from megatron_aia.runtime.device import device", True),
        ("aia/loss.py", "from megatron_aia.aia.roles import Task", True),
        ("aia/loss.py", "from megatron_aia.models.spec import ModelSpec", False),
        ("models/norm.py", "import megatron_aia.training.step", False),
        ("models/norm.py", "from megatron_aia import training", False),
        ("models/emu3/lists.py", "from megatron_aia.building.sources.base import Source", True),
        ("models/emu3/lists.py", "from megatron_aia.building.build import build_shards", False),
        ("models/lists.py", "from megatron_aia.building.sources.base import Source", False),
        ("building/build.py", "from megatron_aia.data.batch import MicroBatch", False),
        ("cli.py", "def f():\n    from megatron_aia.data.batch import MicroBatch", False),
        ("analysis/plots.py", "from megatron_aia.analysis.records import LogRecord", True),
        ("analysis/plots.py", "from megatron_aia.training.step import run_step", False),
    ],
)
def test_the_rule_itself(file: str, line: str, is_fine: bool) -> None:
    assert (not against_direction(PACKAGE / file, line)) == is_fine


def test_shards_are_built_without_torch() -> None:
    """Whoever only prepares data installs no torch; ``--help`` of a run does not wait for it."""
    program = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "megatron", "transformers"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import megatron_aia.building.build, megatron_aia.building.demo, megatron_aia.cli
from megatron_aia.models import families
from megatron_aia.building.sources import known_formats
assert families() and known_formats()
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)


def test_configuration_and_command_line_stay_light() -> None:
    """``--check`` and ``--help`` must not wait for torch."""
    heavy = ("torch", "megatron", "transformers")
    light = [*(PACKAGE / "config").glob("*.py"), PACKAGE / "cli.py"]
    light += [PACKAGE / "models" / "__init__.py", PACKAGE / "models" / "family.py"]
    light += [*PACKAGE.glob("models/*/presets.py"), *PACKAGE.glob("models/*/family.py")]
    for path in light:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [module]
            assert not any(name.split(".")[0] in heavy for name in names), f"{path}: {names}"
