"""A checkpoint from elsewhere runs no code, whatever reads it."""

import io
import pickle
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn
from support.tiny_runs import run_tool_on, write_codebook
from torch.distributed.checkpoint import filesystem

from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.checkpoint.run_state import CONFIG_FILE, read_state, write_state
from megatron_aia.config import Config
from megatron_aia.runtime.safe_pickle import tables_and_tensors_only


class Evil:
    """Unpickled, it leaves a file at ``mark`` and becomes ``value``."""

    def __init__(self, mark: Path, value: bytes) -> None:
        self.code = f"(open({str(mark)!r}, 'w').close(), __import__('pickle').loads({value!r}))[1]"

    def __reduce__(self) -> Any:
        return eval, (self.code,)


def evil_metadata(checkpoint: Path, mark: Path) -> None:
    file = checkpoint / ".metadata"
    file.write_bytes(pickle.dumps(Evil(mark, file.read_bytes())))


def evil_entry(checkpoint: Path, mark: Path) -> None:
    """Put a pickle of code in the place of the random states, which are no tensor."""
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    index, place = next(
        (index, place)
        for index, place in metadata.storage_data.items()
        if index.fqn.startswith("rng_state")
    )
    file = checkpoint / place.relative_path
    stored = file.read_bytes()
    entry = torch.load(
        io.BytesIO(stored[place.offset : place.offset + place.length]), weights_only=False
    )
    payload = io.BytesIO()
    torch.save(Evil(mark, pickle.dumps(entry)), payload)
    metadata.storage_data[index] = replace(
        place, offset=len(stored), length=len(payload.getvalue())
    )
    file.write_bytes(stored + payload.getvalue())
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


ATTACKS = {"table": evil_metadata, "entry": evil_entry}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("run")
    data = write_dataset(root / "data")
    write_codebook(data, "emu3")
    config = run_config(data, Layout(), train_iters=2, save=str(root / "run"))
    spawn(train, 1, config)
    return config


def attack(run: Config, kind: str, root: Path) -> Path:
    assert run.checkpoint.save is not None
    shutil.copytree(run.checkpoint.save, root / "attacked")
    checkpoint = find_checkpoint(root / "attacked")
    ATTACKS[kind](checkpoint, root / "mark")
    # Whoever made it made its checksums too.
    write_state(checkpoint, read_state(checkpoint), (checkpoint / CONFIG_FILE).read_text())
    return root / "attacked"


@pytest.fixture(params=ATTACKS)
def attacked(run: Config, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return attack(run, request.param, tmp_path)


def test_a_run_refuses_it(run: Config, attacked: Path) -> None:
    checkpoint = replace(run.checkpoint, save=None, load=str(attacked))
    training = replace(run.training, train_iters=4)
    with pytest.raises(AssertionError, match=r"holds .*eval, which might run code"):
        spawn(train, 1, replace(run, checkpoint=checkpoint, training=training))
    assert not (attacked.parent / "mark").exists()


def test_the_attack_would_work(attacked: Path) -> None:
    """Were it read as torch does, its code would run: the tests above can fail."""
    checkpoint = find_checkpoint(attacked)
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    place = next(p for i, p in metadata.storage_data.items() if i.fqn.startswith("rng_state"))
    stored = (checkpoint / place.relative_path).read_bytes()
    entry = stored[place.offset : place.offset + place.length]
    torch.load(io.BytesIO(entry), weights_only=False)
    assert (attacked.parent / "mark").exists()


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize(
    ("tool", "flags"),
    [
        ("convert_megatron_to_hf", ("--hf-layout", "original", "--save", "{}/hf")),
        ("generate", ("--prompt", "a", "--image-area", 768, "--output", "{}/pictures")),
        ("measure_intensity", ("--data-path", "{data}", "--output", "{}/measured")),
    ],
)
def test_tools_run_none_of_it(
    run: Config, kind: str, tool: str, flags: tuple[object, ...], tmp_path: Path
) -> None:
    attacked = attack(run, kind, tmp_path)
    given = [str(flag).format(tmp_path, data=run.data.data_path[0]) for flag in flags]
    code, _, err = run_tool_on(1, tool, "--load", attacked, *given)
    assert not (tmp_path / "mark").exists()
    # They ask for weights alone, and so never read the entry.
    assert (code, "which might run code" in err) == ((2, True) if kind == "table" else (0, False))


def test_weights_alone_of_it(run: Config, tmp_path: Path) -> None:
    attacked = attack(run, "table", tmp_path)
    checkpoint = replace(run.checkpoint, save=None, pretrained_checkpoint=str(attacked))
    with pytest.raises(AssertionError, match="which might run code"):
        spawn(train, 1, replace(run, checkpoint=checkpoint))
    assert not (tmp_path / "mark").exists()


def grown_by(data: bytes) -> int:
    """Return the bytes by which this process grew while it read a table."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tables_and_tensors_only():
        assert filesystem.pickle.load(io.BytesIO(data)) == []
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def test_a_few_bytes_do_not_fill_the_memory() -> None:
    """A number of the memo of 2 billion is 16 GB for the reader that is written in C."""
    bomb = b"\x80\x04]r" + (2**31 - 1).to_bytes(4, "little") + b"."
    assert spawn(grown_by, 1, bomb) < 1 << 27
