"""Which checkpoint is taken, which go, and that damage is named; no tensors."""

import contextlib
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.tools import run_tool

from megatron_aia.checkpoint import folder as folder_file
from megatron_aia.checkpoint.choose import choose_checkpoint
from megatron_aia.checkpoint.folder import (
    LATEST_FILE,
    checkpoint_path,
    complete_checkpoints,
    find_checkpoint,
    has_checkpoint,
    publish,
    remove_leftovers,
)
from megatron_aia.checkpoint.run_state import RUN_FILE, RunState, read_state, read_sums, write_state

STATE = RunState(
    iteration=0,
    consumed_samples=12,
    total_skipped=0,
    data_fingerprint="",
    model={},
    layout={},
    optimizer="",
    freeze=("a.*",),
)


def write(path: Path, iteration: int) -> Path:
    """Write a checkpoint of two files of tensors."""
    (path / "inner").mkdir(parents=True)
    (path / "__0_0.distcp").write_bytes(bytes(range(200)) * iteration)
    (path / "inner" / "text.json").write_text("{}")
    write_state(path, replace(STATE, iteration=iteration), "run: {}\n")
    return path


def save(folder: Path, iteration: int, keep: int = 0) -> Path:
    final = checkpoint_path(folder, iteration)
    publish(write(final.with_name(f".{final.name}.writing"), iteration), final, keep)
    return final


def names(folder: Path) -> list[str]:
    return [path.name for path in complete_checkpoints(folder)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    assert read_state(path) == replace(STATE, iteration=3)
    sums = read_sums(path)
    assert sums is not None
    assert set(sums) == {"__0_0.distcp", "inner/text.json", "config.yaml"}
    assert sums["__0_0.distcp"][0] == 600
    assert choose_checkpoint(tmp_path) == path


@pytest.mark.parametrize("pointer", [None, b"", b"\xff\xfe", b"../7", b"9", b"iter_0000009"])
def test_a_lost_pointer_is_no_lost_run(
    tmp_path: Path, pointer: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 2)
    path = save(tmp_path, 4)
    (tmp_path / LATEST_FILE).unlink()
    if pointer is not None:
        (tmp_path / LATEST_FILE).write_bytes(pointer)
    assert has_checkpoint(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(tmp_path) == path
    assert "which was written last" in caplog.text


def test_a_folder_with_nothing_complete_is_not_empty(tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path / "none")
    assert not has_checkpoint(tmp_path)
    save(tmp_path, 1)
    (tmp_path / LATEST_FILE).unlink()
    (tmp_path / "iter_0000001" / RUN_FILE).unlink()
    assert has_checkpoint(tmp_path), "a run that begins here would write over it"
    with pytest.raises(ValueError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)


def test_going_back_in_time_keeps_what_is_new(tmp_path: Path) -> None:
    """5 to 8 were abandoned; the run went on from 4."""
    for iteration in range(4, 9):
        save(tmp_path, iteration)
    for iteration in (5, 6):
        save(tmp_path, iteration, keep=2)
    assert names(tmp_path) == ["iter_0000005", "iter_0000006"]
    assert find_checkpoint(tmp_path).name == "iter_0000006"


def test_leftovers_beside_nothing_whole_are_removed_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A first save into a folder of a run that was killed in its first save."""
    (tmp_path / LATEST_FILE).write_text("9")
    write(tmp_path / ".iter_0000003.writing", 3)
    with caplog.at_level(logging.INFO):
        remove_leftovers(tmp_path)
    assert not list(tmp_path.glob(".iter_*"))
    assert "removing" in caplog.text
    remove_leftovers(tmp_path)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(1, 6))
def test_killed_at_any_step_of_publishing(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run went back to 5 and writes 6 again; 7 was abandoned."""
    for iteration in (5, 6, 7):
        save(tmp_path, iteration)
    (tmp_path / LATEST_FILE).write_text("6")
    old = (tmp_path / "iter_0000006" / RUN_FILE).read_text()
    temporary = write(tmp_path / ".iter_0000006.writing", 6)
    new = (temporary / RUN_FILE).read_text()
    left = step

    def count(action):  # type: ignore[no-untyped-def]
        def counted(*args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal left
            left -= 1
            if not left:
                raise _Killed
            return action(*args, **kwargs)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(folder_file.os, "replace", count(os.replace))
        patch.setattr(folder_file.shutil, "rmtree", count(shutil.rmtree))
        with contextlib.suppress(_Killed):
            publish(temporary, checkpoint_path(tmp_path, 6), 0)
    found = find_checkpoint(tmp_path)
    assert (found / RUN_FILE).read_text() in (old, new)
    assert choose_checkpoint(tmp_path) == found
    remove_leftovers(tmp_path)
    assert (find_checkpoint(tmp_path) / RUN_FILE).read_text() in (old, new)
    save(tmp_path, 7)
    remove_leftovers(tmp_path)
    assert not list(tmp_path.glob(".iter_*"))


def flip(file: Path, place: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["__0_0.distcp", "inner/text.json", "config.yaml"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_named(tmp_path: Path, name: str, damage: str) -> None:
    older = save(tmp_path, 1)
    path = save(tmp_path, 2)
    file = path / name
    if damage == "flip":
        flip(file)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    reason = {"flip": "CRC-32", "cut": "bytes and was written with", "remove": "is missing"}
    with pytest.raises(ValueError, match="is whole: name it by --load") as caught:
        choose_checkpoint(tmp_path)
    assert f"{file} " in str(caught.value)
    assert reason[damage] in str(caught.value)
    assert str(older) in str(caught.value)
    assert choose_checkpoint(tmp_path, fallback=True) == older
    assert choose_checkpoint(tmp_path, verify=False) == path
    flip(older / "__0_0.distcp")
    with pytest.raises(ValueError, match="no other checkpoint beside it is whole"):
        choose_checkpoint(tmp_path, fallback=True)


def test_every_bit_of_the_state_counts(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    file = path / RUN_FILE
    text = file.read_text()
    document = json.loads(text)
    for changed in (
        text.replace('"consumed_samples": 12', '"consumed_samples": 13'),
        text.replace('"iteration": 1', '"iteration": 3'),
        text.replace(document["files"]["__0_0.distcp"][1], "00000000"),
    ):
        assert changed != text
        file.write_text(changed)
        with pytest.raises(ValueError, match="does not fit its own CRC-32"):
            read_state(path)
    for changed in ("", "{", "[" * 100_000, "null", "\x00"):
        file.write_text(changed)
        with pytest.raises(ValueError, match=r"run\.json cannot be read"):
            read_state(path)
        with pytest.raises(ValueError, match=r"run\.json cannot be read"):
            choose_checkpoint(tmp_path)


def test_one_of_an_earlier_version_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path, 1)
    document = json.loads((path / RUN_FILE).read_text())
    for name in ("files", "saved_at", "crc32"):
        del document[name]
    (path / RUN_FILE).write_text(json.dumps(document))
    with caplog.at_level(logging.WARNING):
        assert choose_checkpoint(tmp_path) == path
    assert "has no checksums" in caplog.text
    assert names(tmp_path) == ["iter_0000001"]


def test_the_tool(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    code, out, _ = run_tool("verify_checkpoint", tmp_path, "--num-workers", 2)
    assert code == 0
    assert out == f"{path}: 3 files, 0.000 GB, all as written\n"
    flip(tmp_path / "iter_0000001" / "__0_0.distcp")
    assert run_tool("verify_checkpoint", tmp_path)[0] == 0
    code, out, _ = run_tool("verify_checkpoint", tmp_path, "--all")
    assert code == 1
    assert "iter_0000001/__0_0.distcp is damaged: its CRC-32 is" in out
    assert f"{path}: 3 files" in out
    (path / RUN_FILE).write_text("{")
    code, out, _ = run_tool("verify_checkpoint", path)
    assert code == 1
    assert "run.json cannot be read" in out
    for arguments in ((), (tmp_path / "none",)):
        code, _, err = run_tool("verify_checkpoint", *arguments)
        assert code == 2
        assert len(err.strip().splitlines()) == 1
