from pathlib import Path
from typing import Any

import pytest

from megatron_aia.config import Config
from megatron_aia.config.files import (
    GROUP_OF_FIELD,
    dump,
    read_yaml,
    value_of,
    with_values,
)
from megatron_aia.models import aia_preset_table, with_aia_preset


def read(path: str) -> dict[str, Any]:
    return read_yaml(path).values_for(Config(), {})


@pytest.fixture
def write(tmp_path):
    def write_yaml(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    return write_yaml


def test_keys_may_be_flat_or_grouped(write):
    values = read(write("lr: 0.1\nmodel: emu3\ndata: {seq_length: 8}\n"))
    assert values == {"lr": 0.1, "model": "emu3", "seq_length": 8}
    assert read(write("model: {model: emu3, num_layers: 2}")) == {
        "model": "emu3",
        "num_layers": 2,
    }


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("lr: 1e-5", "lr", 1e-5),
        ("lr: 1", "lr", 1.0),
        ("task_ratio: 1:1", "task_ratio", "1:1"),
        ("bf16: true", "bf16", True),
        ("load: null", "load", None),
        ("data_path: [a, b]", "data_path", ("a", "b")),
        ("data_path: [2, a, 1, b]", "data_path", ("2", "a", "1", "b")),
        ("data_path: a", "data_path", ("a",)),
        ("recompute_granularity: full", "recompute_granularity", "full"),
        ("kv_channels: 32", "kv_channels", 32),
    ],
)
def test_values_mean_what_they_say(write, text, field, value):
    found = read(write(text))[field]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_lyers: 2", "unknown key num_lyers; did you mean num_layers?"),
        ("model: {num_lyers: 2}", "unknown key num_lyers; did you mean num_layers?"),
        ("trainning: {lr: 1}", "unknown key trainning; did you mean training?"),
        ("data: {lr: 1}", "lr belongs to the group training, not data"),
        ("lr: 1\ntraining: {lr: 2}", "lr is set twice"),
        ("config: other.yaml", "a file cannot name another file"),
        ("num_layers: many", "num_layers must be an integer, not 'many'"),
        ("num_layers: 2.5", "num_layers must be an integer, not 2.5"),
        ("num_layers: true", "num_layers must be an integer, not True"),
        ("lr: fast", "lr must be a number, not 'fast'"),
        ("lr: true", "lr must be a number, not True"),
        ("bf16: 1", "bf16 must be true or false, not 1"),
        ("save: 3", "save must be text, not 3"),
        ("data_path: [true]", "data_path must be text, not True"),
        ("aia_loss: l1", "aia_loss must be one of huber, mse, not 'l1'"),
        ("kv_channels: wide", "kv_channels must be an integer, not 'wide'"),
        ("- 1", "expected keys with values"),
        ("", "expected keys with values"),
        ("a: [", "not YAML"),
    ],
)
def test_mistakes_name_the_file_and_the_key(write, text, message):
    path = write(text)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml: No such file"):
        read(str(tmp_path / "none.yaml"))
    with pytest.raises(ValueError, match="Is a directory"):
        read(str(tmp_path))


def test_dump_reads_back(write):
    config = with_values(
        Config(), {"data_path": ("a", "b"), "lr": 3e-7, "task_ratio": "2:2:1", "save": "out"}
    )
    values = read(write(dump(config)))
    assert set(values) == set(GROUP_OF_FIELD) - {"config"}
    assert with_values(Config(), values) == config


def test_with_values_leaves_its_input_alone():
    config = Config()
    assert with_values(config, {"lr": 1.0, "min_lr": 0.5}).training.lr == 1.0
    assert config == Config()


def test_aia_presets():
    config = with_aia_preset(Config(), "released_code")
    assert config.aia.aia_preset == "released_code"
    assert config.aia.aia_lambda_generation == 5
    assert config.aia.aia_lambda_understanding == 10
    assert config.aia.aia_profile == "released_code"
    assert config.aia.aia_query_key_sets == "released_code"
    assert config.aia.aia_count_inactive
    assert with_aia_preset(config, "paper") == Config()
    table = aia_preset_table()
    assert len({frozenset(values) for values in table.values()}) == 1
    with pytest.raises(ValueError, match="unknown --aia-preset lost; choose from paper, "):
        with_aia_preset(config, "lost")


def test_every_field_has_a_help_text():
    from megatron_aia.config import tree

    source = Path(tree.__file__).read_text()
    for field in GROUP_OF_FIELD:
        line = next(part for part in source.split("\n    ") if part.startswith(f"{field}: "))
        following = source.split(line + "\n    ", 1)[1]
        assert following.startswith('"""'), field
        assert value_of(Config(), field) is not ...
