import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.records import placeholder_record

from megatron_aia.aia.roles import Task
from megatron_aia.analysis.records import LogRecord, append_record
from megatron_aia.models import load_family
from megatron_aia.shards.patch_quantizer import PatchQuantizer

G, U = Task.GENERATION, Task.UNDERSTANDING
TOOL = Path(__file__).parents[2] / "tools" / "demo_report.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("demo_report", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_record(iteration: int, ntp: dict, intensity: dict) -> LogRecord:
    return placeholder_record(
        iteration,
        train_iters=20,
        losses={"ntp": ntp, "aia": {task: 0.5 for task in intensity}},
        intensity={task: np.array(curve) for task, curve in intensity.items()},
        target={G: np.array([0.4, 0.2]), U: np.array([0.1, 0.3])},
    )


RECORDS = [
    make_record(1, {G: 6.0}, {G: [0.8, 0.4]}),
    make_record(10, {G: 5.0, U: 4.0}, {G: [0.6, 0.3], U: [0.2, math.nan]}),
    make_record(20, {U: 3.0}, {G: [0.5, 0.2]}),
]


@pytest.fixture
def folders(tmp_path):
    run, data = tmp_path / "run", tmp_path / "data"
    run.mkdir()
    data.mkdir()
    for record in RECORDS:
        append_record(run, record)
    grey = np.arange(0, 256, 16, dtype=np.uint8)
    codebook = np.broadcast_to(grey[:, None, None, None], (16, 8, 8, 3)).copy()
    PatchQuantizer(codebook, image_area=64 * 64).save(data / "codebook.npz")
    return {"--run": run, "--data": data, "--output": tmp_path / "figures"}


def run_tool(tool, folders) -> int:
    return tool.main([str(part) for option in folders.items() for part in option])


def test_figures_and_table(tool, folders, capsys):
    assert run_tool(tool, folders) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, name in zip(lines, ["losses", "intensity", "reconstruction"], strict=False):
        assert line == str(folders["--output"] / f"{name}.png")
        with Image.open(line) as image:
            assert min(image.size) > 400
    assert [" ".join(line.split()) for line in lines[-2:]] == [
        "generation 6.000 -> 5.000 0.300 -> 0.050",
        "understanding 4.000 -> 3.000 0.100 -> 0.100",
    ]


def test_intensity_uses_the_ends_of_each_task(tool):
    before, after = tool.intensity_ends(RECORDS, G)
    np.testing.assert_array_equal(before, [0.8, 0.4])
    np.testing.assert_array_equal(after, [0.5, 0.2])
    assert tool.intensity_ends(RECORDS, Task.TEXT) is None


def test_run_without_aia_has_no_intensity(tool):
    records = [make_record(1, {G: 6.0, Task.TEXT: 2.0}, {})]
    assert set(tool.draw_run(records)) == {"losses"}
    rows = tool.format_summary(records).splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["text", "generation"]
    assert "|" not in "".join(rows)


def test_reconstruction_compares_equal_sizes(tool, folders):
    figure = tool.draw_reconstruction(folders["--data"], load_family("emu3").demo)
    original, decoded = (axes.get_images()[0].get_array() for axes in figure.axes)
    assert original.shape == decoded.shape
    assert set(np.unique(decoded)) <= set(range(0, 256, 16))
    assert "codes out of 16, PSNR" in figure.get_suptitle()


def test_psnr(tool):
    black = np.zeros((2, 2, 3), np.uint8)
    assert tool.psnr(black, black) == math.inf
    assert tool.psnr(black, black + np.uint8(255)) == 0
    assert tool.psnr(black + np.uint8(255), black) == 0


@pytest.mark.parametrize(
    ("missing", "message"),
    [("run/metrics.jsonl", "does not exist"), ("data/codebook.npz", "not a patch codebook")],
)
def test_missing_input_is_one_line(tool, folders, tmp_path, capsys, missing, message):
    (tmp_path / missing).unlink()
    assert run_tool(tool, folders) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("demo_report: ") and message in line
    assert not folders["--output"].exists()


def test_output_in_the_place_of_a_file(tool, folders, capsys):
    folders["--output"].write_text("")
    assert run_tool(tool, folders) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
