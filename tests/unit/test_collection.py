"""No test is left out because of the name of its folder."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def test_every_folder_of_tests_is_collected(pytestconfig: pytest.Config) -> None:
    folders = {path.parent for path in TESTS.rglob("test_*.py")}
    assert TESTS / "dist" in folders
    for folder in folders:
        for pattern in pytestconfig.getini("norecursedirs"):
            assert not fnmatch(folder.name, pattern), f"{folder} is skipped as {pattern}"
