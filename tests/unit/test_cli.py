import json
import os
import re
import subprocess
import sys

import pytest

from megatron_aia import cli
from megatron_aia.cli import one_line_errors, parse
from megatron_aia.config.files import GROUP_OF_FIELD, dump, settings_by_name, value_of
from megatron_aia.config.settings import flag
from megatron_aia.models import aia_preset_table, family_names, preset_table


def write(tmp_path, text) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return str(path)


def test_without_arguments_the_default_preset_stands():
    assert parse([]) == preset_table()["emu3_demo"].build()
    assert parse([], default_preset="emu3_8b") == preset_table()["emu3_8b"].build()


def test_preset_then_file_then_flags(tmp_path):
    file = write(tmp_path, "training: {lr: 0.5, min_lr: 0.25}\nnum_layers: 6\n")
    config = parse(["--num-layers", "4", "--config", file])
    demo = preset_table()["emu3_demo"].build()
    assert config.model.num_layers == 4
    assert (config.training.lr, config.training.min_lr) == (0.5, 0.25)
    assert config.training.train_iters == demo.training.train_iters
    assert config.run.config == file


def test_a_file_names_the_preset_and_a_flag_wins(tmp_path):
    file = write(tmp_path, "preset: emu3_8b\nseed: 1\n")
    assert parse(["--config", file], default_preset="emu3_demo").model.num_layers == 32
    config = parse(["--config", file, "--preset", "emu3_demo"], default_preset="emu3_8b")
    assert (config.run.preset, config.model.num_layers, config.run.seed) == ("emu3_demo", 6, 1)


def test_patterns_replace_those_of_the_preset():
    janus = ["--preset", "janus_demo"]
    assert parse(janus).training.freeze == ("vision_model.*",)
    assert parse([*janus, "--freeze", "a.*", "b"]).training.freeze == ("a.*", "b")
    assert parse([*janus, "--freeze"]).training.freeze == ()


def test_an_aia_preset_is_below_the_other_flags():
    config = parse(["--aia-lambda-generation", "7", "--aia-preset", "released_code"])
    assert config.aia.aia_lambda_generation == 7
    assert config.aia.aia_lambda_understanding == 10
    assert config.aia.aia_query_key_sets == "released_code"


def test_an_aia_preset_of_a_file_is_below_its_other_keys(tmp_path):
    file = write(tmp_path, "aia: {aia_lambda_generation: 7, aia_preset: released_code}")
    config = parse(["--config", file])
    assert (config.aia.aia_lambda_generation, config.aia.aia_lambda_understanding) == (7, 10)
    config = parse(["--config", file, "--aia_preset=paper"])
    assert (config.aia.aia_lambda_generation, config.aia.aia_lambda_understanding) == (40, 40)


def test_flags_of_megatron_users():
    config = parse(
        ["--data-path", "a", "b", "--num_layers", "6", "--bf16", "--no-packing", "--kv-channels=32"]
    )
    assert config.data.data_path == ("a", "b")
    assert (config.model.num_layers, config.model.kv_channels) == (6, 32)
    assert config.training.bf16 and not config.data.packing
    assert parse(["--blend", "2", "a", "1", "b"]).data.data_path == ("2", "a", "1", "b")


def test_none_unsets_an_option():
    argv = ["--preset", "emu3_8b", "--recompute-granularity", "none", "--config", "none"]
    assert parse(argv).parallel.recompute_granularity is None


def test_the_layout_is_fitted_where_the_world_is_known():
    assert parse([]).parallel.tensor_model_parallel_size is None
    parallel = parse([], world_size=4).parallel
    assert parallel.layout == (2, 2, 1)


def test_a_dumped_configuration_reads_back(tmp_path):
    config = parse(["--lr", "1e-3", "--data-path", "a", "--aia-preset", "released_code"])
    again = parse(["--config", write(tmp_path, dump(config))])
    again.run.config = None
    assert again == config


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--num-lyers 3", "unknown option --num-lyers; did you mean --num-layers?"),
        ("--seq_len=4", "unknown option --seq-len; did you mean --seq-length?"),
        ("--zzz", "unknown option --zzz; see --help"),
        ("--bf16 true", "unexpected argument true; see --help"),
        ("--num-layers x", "--num-layers must be an integer, not 'x'"),
        ("--kv-channels x", "--kv-channels must be an integer, not 'x'"),
        ("--num-layers", "--num-layers: expected 1 argument; see --help"),
        ("--preset", "--preset: expected 1 argument; see --help"),
        ("--aia-loss l1", "--aia-loss must be one of huber, mse, not 'l1'"),
        (
            "--aia-preset mine",
            "unknown --aia-preset mine; choose from paper, paper_j",
        ),
        (
            "--preset emu4",
            "unknown --preset emu4; use emu3_8b, emu3_demo, janus_demo, ",
        ),
        ("--model emu4", "--model emu4 is unknown; choose from emu3, janus_pro"),
        (
            "--model janus_pro",
            "--model janus_pro is not that of preset emu3_demo; choose a preset ",
        ),
        ("--code-channels 8", "--code-channels; it is a setting of --model janus_pro only"),
        ("--config none.yaml", "--config none.yaml: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(argv, message):
    with pytest.raises(ValueError) as error:
        parse(argv.split())
    assert message in str(error.value)
    assert "\n" not in str(error.value) and "│" not in str(error.value)


WRONG_VALUES = [
    ("num_layers", "two"),
    ("num_layers", "2.5"),
    ("lr", "fast"),
    ("kv_channels", "wide"),
    ("aia_loss", "l1"),
    ("recompute_granularity", "some"),
]


@pytest.mark.parametrize(("name", "wrong"), WRONG_VALUES)
def test_a_wrong_type_gives_the_same_line_from_a_flag_and_from_a_file(tmp_path, name, wrong):
    file = write(tmp_path, f"{name}: {wrong}")
    with pytest.raises(ValueError) as of_file:
        parse(["--config", file])
    with pytest.raises(ValueError) as of_flag:
        parse([flag(name), wrong])
    said = str(of_flag.value).removeprefix(flag(name))
    assert said.startswith(" must be ")
    assert str(of_file.value) == f"--config {file}: {name}{said}"


def help_text(capsys, monkeypatch, *argv: str) -> str:
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit) as exit_request:
        parse([*argv, "--help"])
    assert exit_request.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("preset", ["emu3_demo", "janus_pro_7b"])
def test_every_flag_has_type_default_and_help(capsys, monkeypatch, preset):
    text = help_text(capsys, monkeypatch, "--preset", preset)
    config = preset_table()[preset].build()
    for name, setting in settings_by_name(config).items():
        line = rf"^ +{setting.flag}(?:, | )(\S+)(?: \.\.\.\])?\s+(.*) \(default: (.*)\)$"
        found = re.search(line, text, re.M)
        assert found, name
        kind, words, default = found.groups()
        assert words == setting.help
        value = value_of(config, name)
        if setting.kind.base is bool:
            assert kind == f"--no-{setting.flag[2:]}"
            assert default == ("on" if value else "off")
        else:
            assert re.search(r"INT|FLOAT|TEXT|\{.+\}", kind), name
            shown = str(value)
            if setting.kind.is_tuple:
                shown = " ".join(map(str, value)) or "none given"
            assert default == ("none" if value is None else shown)


def test_help_lists_presets_and_models(capsys, monkeypatch):
    text = help_text(capsys, monkeypatch)
    assert f"--preset {{{','.join(sorted(preset_table()))}}}" in text
    assert f"--model {{{','.join(family_names())}}}" in text
    assert f"--aia-preset {{{','.join(sorted(aia_preset_table()))}}}" in text


def test_help_lists_every_field(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as exit_request:
        parse(["--help"])
    assert exit_request.value.code == 0
    text = capsys.readouterr().out
    for field in GROUP_OF_FIELD:
        assert re.search(rf"^\W*{flag(field)}[ ,]", text, re.MULTILINE), field
    assert max(map(len, text.splitlines())) <= 100


def test_only_rank_0_prints_help(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as exit_request:
        parse(["--help"])
    assert exit_request.value.code == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("rank", "said"), [("0", "error: one two\n"), ("1", "")])
def test_an_error_is_said_by_rank_0(capsys, monkeypatch, rank, said):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(cli, "_SECONDS_FOR_RANK_0", 0)
    with pytest.raises(SystemExit) as exit_request, one_line_errors():
        raise ValueError("one\ntwo")
    assert exit_request.value.code == 2
    assert capsys.readouterr().err == said


def test_the_line_is_left_where_torchrun_looks_for_it(tmp_path, monkeypatch, capsys):
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit), one_line_errors():
        raise ValueError("one")
    assert json.loads(file.read_text())["message"]["extraInfo"]["py_callstack"] == "error: one"


def test_reading_a_command_line_imports_no_torch():
    program = (
        "import sys; from megatron_aia.cli import parse; parse([]); print('torch' in sys.modules)"
    )
    environment = {**os.environ, "RANK": "0"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.strip() == "False"
