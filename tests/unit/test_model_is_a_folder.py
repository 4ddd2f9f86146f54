"""A model is its folder and one line of the table: nothing else in the package names one."""

import re
from collections.abc import Iterator
from pathlib import Path

from megatron_aia.config.families import FAMILIES

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "megatron_aia"
TABLE = PACKAGE / "config" / "families.py"
NAMES = re.compile("emu3|janus|unifork", re.IGNORECASE)
MAY_NAME = {
    # Commands of the examples, shown to users.
    "tools/inspect_data.py",
    "tools/index_data.py",
    # Names of earlier versions.
    "megatron_aia/config/renames.py",
    # What the paper measured, on the models it measured.
    "megatron_aia/aia/profiles/paper.yaml",
    "megatron_aia/aia/profiles/paper_janus_pro.yaml",
    "megatron_aia/aia/profiles/released_code.yaml",
    "megatron_aia/evaluation/references/aia_v2.yaml",
    "megatron_aia/evaluation/references/orion.yaml",
    "megatron_aia/evaluation/references/realunify.yaml",
    "megatron_aia/evaluation/references/torchumm.yaml",
    "megatron_aia/evaluation/references/unifork.yaml",
    # An analysis of its paper.
    "megatron_aia/measurement/alignment.py",
    "tools/measure_alignment.py",
}


def shared_files() -> Iterator[Path]:
    """Yield the files of the package and the tools that belong to no model."""
    folders = {PACKAGE / "models" / name for name in FAMILIES}
    for path in (*PACKAGE.rglob("*.*"), *(REPOSITORY / "tools").glob("*.py")):
        if path.suffix in (".py", ".yaml") and not folders & set(path.parents):
            yield path


def test_no_shared_file_names_a_model() -> None:
    files = {path for path in shared_files() if path != TABLE}
    assert len(files) > 100
    found = {
        path.relative_to(REPOSITORY).as_posix()
        for path in files
        if NAMES.search(path.read_text(encoding="utf-8"))
    }
    assert found == MAY_NAME


def test_every_folder_is_in_the_table() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("models/*/family.py")}
    assert folders == set(FAMILIES)
    assert all(name.split("_")[0] in NAMES.pattern for name in FAMILIES)
