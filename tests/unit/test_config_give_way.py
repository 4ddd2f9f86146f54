"""A preset's value gives way to what the user gave; two given values contradict each other."""

import pytest

from megatron_aia.cli import parse_with_notes
from megatron_aia.config import validate


def settle(argv: str, world_size: int = 4):
    command_line = parse_with_notes(argv.split(), world_size=world_size)
    validate(command_line.config, world_size)
    return command_line.config, command_line.notes


@pytest.mark.parametrize(
    ("argv", "note"),
    [
        ("--train-iters 3", "--lr-warmup-iters 10 of preset emu3_demo is 2 here, to fit this run"),
        ("--train-iters 1", "--lr-warmup-iters 10 of preset emu3_demo is 0 here"),
        ("--lr-decay-iters 5", "--lr-warmup-iters 10 of preset emu3_demo is 4 here"),
        ("--lr-warmup-iters 200", "--train-iters 100 of preset emu3_demo is 201 here"),
        ("--lr 1e-5", "--min-lr 0.0001 of preset emu3_demo is 1e-05 here"),
        ("--min-lr 0.01", "--lr 0.001 of preset emu3_demo is 0.01 here"),
        ("--seq-length 2048", "--max-position-embeddings 1024 of preset emu3_demo is 2048 here"),
        ("--max-position-embeddings 512", "--seq-length 1024 of preset emu3_demo is 512 here"),
    ],
)
def test_the_preset_gives_way(argv, note):
    _, notes = settle(argv)
    assert [line[: len(note)] for line in notes] == [note]


def test_a_layout_of_a_preset_fits_fewer_processes(tmp_path):
    data = f"--data-path {tmp_path} --load {tmp_path}"
    config, notes = settle(f"--preset emu3_8b {data}", world_size=2)
    assert config.parallel.layout == (2, 1, 1)
    assert notes == ["--tensor-model-parallel-size 4 of preset emu3_8b is 2 here, to fit this run"]
    assert settle(f"--preset emu3_8b {data}", world_size=16)[1] == []
    given = "--tensor-model-parallel-size 2"
    config, notes = settle(f"--preset emu3_8b {data} {given}", world_size=2)
    assert (config.parallel.layout, len(notes)) == ((2, 1, 1), 0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--train-iters 3 --lr-warmup-iters 10", "--lr-warmup-iters 10 leaves no step"),
        ("--lr 1e-5 --min-lr 1e-4", "--min-lr 0.0001 is above --lr 1e-05"),
        ("--seq-length 2048 --max-position-embeddings 1024", "--seq-length 2048 is longer"),
        ("--tensor-model-parallel-size 3", "--tensor-model-parallel-size 3 does not divide"),
    ],
)
def test_two_given_values_contradict_each_other(argv, message):
    with pytest.raises(ValueError, match=message):
        settle(argv, world_size=6)


def test_values_of_a_file_are_given_ones(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lr_warmup_iters: 10")
    with pytest.raises(ValueError, match="--lr-warmup-iters 10 leaves no step"):
        settle(f"--config {file} --train-iters 3")


def test_nothing_changes_where_all_fits():
    assert settle("")[1] == []
