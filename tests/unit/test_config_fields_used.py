"""A setting nobody reads is a promise nobody keeps."""

import ast
from functools import cache
from pathlib import Path

import pytest
from support.config_reads import ConfigReads

import megatron_aia

PACKAGE = Path(megatron_aia.__file__).parent

READ_BY_NAME = {"RunConfig.config"}
"""The command line opens the file before there is a configuration."""


@cache
def modules() -> dict[ast.Module, bool]:
    """Return the package, and which of its modules are outside of config/."""
    paths = sorted(PACKAGE.rglob("*.py"))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    outside = [PACKAGE / "config" not in path.parents for path in paths]
    return dict(zip(trees, outside, strict=True))


def unread(more: str = "") -> list[str]:
    return ConfigReads({**modules(), ast.parse(more): True}).unread()


def test_every_field_is_read_outside_config() -> None:
    """A property of a group stands for the fields it is made of."""
    assert set(unread()) == READ_BY_NAME


PLANTED = """
class PlantedConfig(LoggingConfig):
    folder: str
    position: int
    by_property: int
    by_method: int
    by_nobody: int

    @property
    def doubled(self) -> int:
        return 2 * self.by_property

    def tripled(self) -> int:
        return 3 * self.by_nobody

def read(config: Config, shard: Shard) -> None:
    shard.folder, shard.position
    logging = config.logging
    logging.doubled
    logging.by_method = 1
    READ
"""


@pytest.mark.parametrize(
    ("reading", "dead"),
    [
        ("pass", {"folder", "position", "by_method", "by_nobody"}),
        ("logging.tripled()", {"folder", "position", "by_method"}),
        ("replace(logging, folder='').by_method", {"folder", "position", "by_nobody"}),
        ("Reader().settings.position", {"folder", "by_method", "by_nobody"}),
        ("self.logging.position", {"folder", "position", "by_method", "by_nobody"}),
    ],
)
def test_a_dead_setting_is_seen(reading: str, dead: set[str]) -> None:
    """An attribute of the same name of anything else is no read of it, nor is an assignment."""
    reader = "class Reader:\n    settings: Optional['LoggingConfig']\n"
    found = unread(reader + PLANTED.replace("READ", reading))
    assert set(found) - READ_BY_NAME == {f"PlantedConfig.{field}" for field in dead}
