"""Versions outside the range are one line; what is made for several versions is right for each."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from megatron_aia.checkpoint.compatibility import check_megatron_core
from megatron_aia.checkpoint.run_state import RUN_FILE, RunState, read_state, read_sums, write_state
from megatron_aia.runtime import mcore, versions

pytestmark = pytest.mark.versions

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = [
    "examples/pretrain_emu3_aia.sh",
    "examples/posttrain_janus_pro_aia.sh",
    "tools/convert_hf_to_megatron.py",
    "tools/convert_megatron_to_hf.py",
    "tools/index_data.py",
    "tools/inspect_data.py",
]
FLAGS = {"convert_hf_to_megatron": ["--hf-path", "a", "--save", "b"]}
FLAGS["convert_megatron_to_hf"] = ["--load", "a", "--save", "b", "--hf-layout", "original"]


def write_megatron_core(folder: Path, version: str) -> Path:
    """Write a megatron-core that fails if it is imported."""
    numbers = zip(("MAJOR", "MINOR", "PATCH"), version.split("."), strict=True)
    core = folder / "megatron" / "core"
    core.mkdir(parents=True)
    (core / "__init__.py").write_text("raise ImportError('imported before it was checked')\n")
    lines = [f"{name} = {number}" for name, number in numbers]
    (core / "package_info.py").write_text("\n".join(lines) + "\n")
    return folder


def pretend(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    for name, version in found.items():
        monkeypatch.setattr(versions, name, lambda version=version: version)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_refuses_in_one_line(tmp_path: Path, program: str) -> None:
    before = write_megatron_core(tmp_path, "0.15.3")
    path = os.pathsep.join([str(before), str(REPOSITORY)])
    flags = FLAGS.get(Path(program).stem, [])
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / program), *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
    )
    assert result.returncode == 2, result.stderr
    needed = "megatron-core>=0.16.1,!=0.17.0,<0.20"
    assert re.fullmatch(
        r"\w+: megatron-core 0\.15\.3 is installed, and this program needs "
        rf"{re.escape(needed)}; run: pip install '{re.escape(needed)}'\n",
        result.stderr,
    )


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        *(("0.15.3", False), ("0.16.0", False), ("0.16.1", True), ("0.16.2", True)),
        *(("0.17.0", False), ("0.17.1", True), ("0.19.9", True), ("0.20.0", False)),
        *(("1.0.0", False), ("", True)),
    ],
)
def test_range_of_megatron_core(
    monkeypatch: pytest.MonkeyPatch, version: str, accepted: bool
) -> None:
    pretend(monkeypatch, megatron_core_version=version)
    if accepted:
        versions.check_versions()
    else:
        with pytest.raises(ValueError, match=f"^megatron-core {re.escape(version)} is installed"):
            versions.check_versions()


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        *(("2.10.1", False), ("2.11.0", True), ("2.14.1+cpu", True)),
        *(("2.11.0a0+1a2b3c.nv26.02", True), ("2.10.0a0+1a2b3c", False)),
    ],
)
def test_range_of_torch(monkeypatch: pytest.MonkeyPatch, version: str, accepted: bool) -> None:
    pretend(monkeypatch, _torch_version=version)
    if accepted:
        versions.check_versions()
    else:
        with pytest.raises(ValueError, match=r"needs torch>=2\.11; run: pip install"):
            versions.check_versions()


@pytest.mark.parametrize(("version", "needed"), [("0.17.1", False), ("0.18.0", True)])
def test_triton_is_asked_for(monkeypatch: pytest.MonkeyPatch, version: str, needed: bool) -> None:
    pretend(monkeypatch, megatron_core_version=version)
    monkeypatch.setattr(versions, "find_spec", lambda name: None)
    if needed:
        with pytest.raises(ValueError, match=r"0\.18\.0 imports triton, .*pip install triton$"):
            versions.check_versions()
    else:
        versions.check_versions()


def test_the_version_is_that_of_what_is_imported() -> None:
    import megatron.core

    assert megatron.core.__version__.partition("+")[0] == versions.megatron_core_version()


def test_setup_asks_pip_for_the_same() -> None:
    text = (REPOSITORY / "setup.py").read_text()
    strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    for name, wanted in versions.SUPPORTED.items():
        # pip takes a container's 2.11.0a0 for less than 2.11.
        assert f"{name}{wanted}" in strings or f"{name}{wanted}.0a0" in strings


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-newest.txt"])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_constraints_lie_in_the_ranges(file: str, python: str) -> None:
    lines = (REPOSITORY / file).read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    valid = [p for p in pins if p.marker is None or p.marker.evaluate({"python_version": python})]
    assert len({pin.name for pin in valid}) == len(valid) == len({pin.name for pin in pins})
    for pin in valid:
        wanted = versions.SUPPORTED.get(pin.name)
        assert wanted is None or versions._fits(str(pin.specifier).removeprefix("=="), wanted)


def test_newest_differs_where_it_says() -> None:
    """One list of versions but for torch: a pin that is raised is raised in both files."""
    here, newest = (
        {
            (pin.name, str(pin.specifier))
            for pin in map(Requirement, (REPOSITORY / file).read_text().splitlines()[2:])
            if pin.marker is None or pin.marker.evaluate({"python_version": "3.12"})
        }
        for file in ("constraints.txt", "constraints-newest.txt")
    )
    assert {name for name, _ in here ^ newest} == {"torch"}


STATE = RunState(1, 4, 0, "", {}, {}, "replicated", megatron_core="0.19.2")


@pytest.mark.parametrize(
    ("saved", "has_file", "ours", "said"),
    [
        ("0.16.1", True, "0.16.1", None),
        ("0.16.1", True, "0.19.2", None),
        ("0.19.2", False, "0.19.2", None),
        ("", False, "0.19.2", None),
        (
            "0.19.2",
            False,
            "0.16.1",
            r"megatron-core 0\.19\.2, and 0\.16\.1 cannot read it; load",
        ),
        ("", False, "0.18.2", r"megatron-core 0\.19 or newer, and 0\.18\.2 cannot read it; "),
        ("0.16.1", False, "0.16.1", r"has lost its file common\.pt; use another checkpoint$"),
    ],
)
def test_a_newer_checkpoint_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    saved: str,
    has_file: bool,
    ours: str,
    said: str | None,
) -> None:
    if has_file:
        (tmp_path / versions.COMMON_FILE).touch()
    monkeypatch.setattr("megatron_aia.checkpoint.compatibility.megatron_core_version", lambda: ours)
    if said is None:
        check_megatron_core(tmp_path, saved)
    else:
        with pytest.raises(ValueError, match=said):
            check_megatron_core(tmp_path, saved)


def test_a_checkpoint_says_what_wrote_it(tmp_path: Path) -> None:
    write_state(tmp_path, STATE, "")
    assert read_state(tmp_path) == STATE
    file = tmp_path / RUN_FILE
    document = json.loads(file.read_text())
    for name in ("megatron_core", "files", "saved_at", "crc32"):
        del document[name]
    file.write_text(json.dumps(document))
    assert read_sums(tmp_path) is None
    assert read_state(tmp_path).megatron_core == "", "earlier ones do not"


def test_writers_are_wrapped_only_where_they_are_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that made its process follow the parent would make the rank deaf to Ctrl-C."""

    def write() -> int:
        return 7

    class Threads:
        write_preloaded_data = staticmethod(write)

    class Processes(Threads):
        write_preloaded_data_multiproc = None

    name = "megatron.core.dist_checkpointing.strategies.filesystem_async"
    for writer, is_wrapped in ((Threads, False), (Processes, True)):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(FileSystemWriterAsync=writer))
        mcore._end_writers_with_rank()
        assert (writer.write_preloaded_data is not write) is is_wrapped
