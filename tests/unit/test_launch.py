import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_aia import cli, train
from megatron_aia.config.files import with_values
from megatron_aia.models import preset_table

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "pretrain_emu3_aia.sh"
SCRIPTS = sorted(EXAMPLES.glob("*_aia.sh"))
PRESETS = {"gpu_preset": "emu3_8b", "cpu_preset": "emu3_demo"}


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(train, "has_cuda", lambda: False)


@pytest.fixture
def trained(monkeypatch):
    """Replace the trainer, and return the configurations it was given."""
    configs = []

    class Recorder:
        def __init__(self, config):
            configs.append(config)

        def run(self):
            configs.append("run")

    stub = SimpleNamespace(Trainer=Recorder)
    monkeypatch.setitem(sys.modules, "megatron_aia.training.trainer", stub)
    return configs


def launch(*command, **environment):
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_bash_and_python(script):
    compile(script.read_text(), script.name, "exec")
    result = launch("bash", "-n", script)
    assert (result.returncode, result.stderr) == (0, "")
    assert os.access(script, os.X_OK)
    assert launch("bash", "-n", EXAMPLES / "launch.sh").returncode == 0


def test_every_family_has_a_script():
    assert [path.name for path in SCRIPTS] == [
        "posttrain_janus_pro_aia.sh",
        "pretrain_emu3_aia.sh",
    ]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "--standalone --nproc-per-node 4"),
        ({"NPROC_PER_NODE": "2"}, "--standalone --nproc-per-node 2"),
        (
            {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "1234"},
            "--nnodes 2 --node-rank 1 --master-addr host --master-port 1234 --nproc-per-node 4",
        ),
    ],
)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_checks_once_and_starts_torchrun(tmp_path, environment, expected, script):
    log = tmp_path / "calls"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\necho "WORLD_SIZE=${{WORLD_SIZE:-}} $*" >> {log}\n')
    python.chmod(0o755)
    search = {"PATH": "/usr/bin:/bin", "PYTHON": str(python)}
    if any(Path(folder, "nvidia-smi").exists() for folder in ("/usr/bin", "/bin")):
        pytest.skip("counts the GPUs of this machine")
    result = launch("bash", script, "--lr", "1 2", **search, **environment)
    assert result.returncode == 0, result.stderr
    world = int(environment.get("NNODES", 1)) * int(environment.get("NPROC_PER_NODE", 4))
    check, start = log.read_text().splitlines()
    assert check == f"WORLD_SIZE={world} {script} --check --lr 1 2"
    assert start.endswith(f" {EXAMPLES}/torchrun.py {expected} {script} --lr 1 2")


def test_bash_says_what_several_machines_need():
    result = launch("bash", SCRIPT, NNODES="2")
    assert result.returncode != 0
    assert "set NODE_RANK to 0 .. NNODES-1" in result.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_says_how_to_install_what_is_missing(tmp_path, script):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\nexec {sys.executable} -S -E "$@"\n')
    python.chmod(0o755)
    result = launch("bash", script, PYTHON=str(python))
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"error: \w+ is not installed; run `make install`\n", result.stderr)


def test_a_package_that_only_a_run_imports_is_missed_at_once(monkeypatch, capsys):
    monkeypatch.setattr(train, "_IMPORTED_LATER", ("megatron.core", "no_such.package"))
    with pytest.raises(SystemExit) as stop:
        train.main(["--check"], **PRESETS)
    assert stop.value.code == 2
    expected = "error: no_such.package is not installed; run `make install`\n"
    assert capsys.readouterr().err == expected


def test_torchruns_report_ends_with_the_line():
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    result = launch(sys.executable, *torchrun, SCRIPT, "--num-lyers", "3")
    said = "error: unknown option --num-lyers; did you mean --num-layers?"
    lines = result.stderr.splitlines()
    assert sum(line == said for line in lines) == 1
    assert lines[-2].endswith(said), "above the closing rule"
    # A rank that torchrun ends while it still imports is listed, as ended by SIGTERM.
    assert result.stderr.count("  exitcode  : 2 ") == 1


def test_started_by_bash_torchrun_adds_no_stack():
    torchrun = (sys.executable, EXAMPLES / "torchrun.py", "--standalone")
    result = launch(*torchrun, SCRIPT, "--num-lyers", "3")
    assert result.returncode == 2
    assert result.stderr.count("error: unknown option --num-lyers") == 1
    assert "Traceback" not in result.stderr


def test_what_is_no_mistake_of_the_user_keeps_its_stack(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(3)")
    result = launch(sys.executable, EXAMPLES / "torchrun.py", "--standalone", script)
    assert result.returncode == 1
    assert "ChildFailedError" in result.stderr


def test_the_banner_says_what_gave_way(trained, tmp_path, capsys):
    train.main(["--data-path", str(tmp_path), "--train-iters", "3"], **PRESETS)
    assert trained[0].training.lr_warmup_iters == 2
    note = "note: --lr-warmup-iters 10 of preset emu3_demo is 2 here, to fit this run"
    assert note in capsys.readouterr().out


def test_a_mistake_is_one_line_before_any_process_starts():
    result = launch("bash", SCRIPT, "--tensor-model-parallel-size", "3")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        "error: --tensor-model-parallel-size 3 does not divide --num-attention-heads 4; "
        "use 1 or 2\n"
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_python_needs_no_installation(tmp_path, script):
    # -I hides the working folder and PYTHONPATH: the script finds the package beside itself.
    result = subprocess.run(
        [sys.executable, "-I", script, "--check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "WORLD_SIZE": "4"},
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_device_chooses_the_preset(monkeypatch, trained, tmp_path, capsys):
    data = ["--data-path", str(tmp_path), "--load", str(tmp_path)]
    train.main(data, **PRESETS)
    assert trained[0].run.preset == "emu3_demo"
    assert trained[1] == "run"
    assert "preset emu3_demo on CPU (no GPU found), processes: 1" in capsys.readouterr().out

    monkeypatch.setattr(train, "has_cuda", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "8")
    train.main(data, **PRESETS)
    assert trained[2].run.preset == "emu3_8b"
    assert "preset emu3_8b on GPU, processes: 8" in capsys.readouterr().out

    train.main([*data, "--preset", "emu3_demo"], **PRESETS)
    assert trained[4].run.preset == "emu3_demo"


def test_missing_inputs_of_the_8b_preset_are_one_line(monkeypatch, trained, capsys):
    monkeypatch.setattr(train, "has_cuda", lambda: True)
    with pytest.raises(SystemExit) as exit_request:
        train.main([], **PRESETS)
    assert exit_request.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: preset emu3_8b needs --data-path ")
    assert "--load" in error and error.count("\n") == 1
    assert trained == []


@pytest.mark.parametrize("path", sorted(SCRIPT.parent.glob("configs/*.yaml")), ids=lambda p: p.name)
def test_every_example_configuration_is_valid(path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    train.main(["--check", "--config", str(path)], **PRESETS)


def test_check_only_checks(trained, capsys):
    train.main(["--check", "--lr", "0.1"], **PRESETS)
    assert trained == []
    assert capsys.readouterr().out == ""


def test_a_mistake_the_trainer_finds_is_one_line_too(monkeypatch, tmp_path, capsys):
    class Picky:
        def __init__(self, config):
            raise ValueError("a profile with a gap")

    stub = SimpleNamespace(Trainer=Picky)
    monkeypatch.setitem(sys.modules, "megatron_aia.training.trainer", stub)
    with pytest.raises(SystemExit):
        train.main(["--data-path", str(tmp_path)], **PRESETS)
    assert capsys.readouterr().err == "error: a profile with a gap\n"


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Work in an empty folder, with a replacement for the builder that notes its calls."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def build(folder, family):
        calls.append((folder, family.name))
        folder.mkdir(parents=True)
        (folder / "dataset.json").write_text("{}")

    monkeypatch.setattr("megatron_aia.building.demo.build_demo", build)
    return calls


FOLDER = Path("demo_output/data")


def demo(preset="emu3_demo"):
    return preset_table()[preset].build()


@pytest.mark.parametrize(
    ("preset", "family", "folder"),
    [("emu3_demo", "emu3", FOLDER), ("janus_demo", "janus_pro", Path("demo_output/janus/data"))],
)
def test_demo_data_is_built_once(built, preset, family, folder):
    expected = with_values(demo(preset), {"data_path": (str(folder),)})
    assert train.ensure_demo_data(demo(preset)) == expected
    assert train.ensure_demo_data(demo(preset)) == expected
    assert built == [(folder, family)]


@pytest.mark.parametrize("values", [{"data_path": ("mine",)}, {"data_path": ("1", "mine")}])
def test_given_data_is_used(built, values):
    config = with_values(demo(), values)
    assert train.ensure_demo_data(config) == config
    assert not built


def test_a_wrong_mixture_file_is_one_line_before_training(tmp_path, trained, capsys):
    file = tmp_path / "mixture.yaml"
    file.write_text("sources: {a: shards}\nphases: [{weights: {b: 1}}]")
    with pytest.raises(SystemExit) as error:
        train.main(["--data-path", str(file)], **PRESETS)
    assert error.value.code == 2 and not trained
    expected = f"error: {file}: phase 1: weights: b is not among the sources; use a\n"
    assert capsys.readouterr().err == expected


def test_a_folder_without_an_index_is_not_demo_data(built):
    FOLDER.mkdir(parents=True)
    with pytest.raises(ValueError, match="remove that folder"):
        train.ensure_demo_data(demo())


def test_other_ranks_wait_for_the_data(built, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(train, "_BUILD_TIMEOUT_SECONDS", 0)
    with pytest.raises(ValueError, match="no demo data"):
        train.ensure_demo_data(demo())
    FOLDER.mkdir(parents=True)
    (FOLDER / "dataset.json").write_text("{}")
    assert train.ensure_demo_data(demo()).data.data_path == (str(FOLDER),)


def test_demo_data_is_for_one_machine(built, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="on several, give --data-path"):
        train.ensure_demo_data(demo())


def test_rank_0_is_the_default():
    assert cli.is_rank_0()


def test_an_unknown_profile_is_found_before_the_start(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train.main(["--check", "--aia-profile", "nothing"], **PRESETS)
    assert stop.value.code == 2
    assert "nothing" in capsys.readouterr().err
