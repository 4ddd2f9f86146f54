"""Old names, old values and Megatron-LM's go on meaning what they meant."""

import re
from pathlib import Path

import pytest

from megatron_aia.cli import parse, parse_with_notes
from megatron_aia.config import Config
from megatron_aia.config.files import GROUP_OF_FIELD, settings_by_name, value_of
from megatron_aia.config.renames import RENAMED, TAKEN_AS
from megatron_aia.config.settings import flag
from megatron_aia.models import aia_preset_table, read_run_config

OLD_AND_NEW = [
    ("--aia-sets intended", "--aia-query-key-sets paper"),
    ("--aia-sets released_code", "--aia-query-key-sets released_code"),
    ("--aia-preset janus_released_code", "--aia-preset released_code"),
    ("--aia-method auto", "--aia-attention auto"),
    ("--aia-method dense", "--aia-attention eager"),
    ("--aia-method rectangle", "--aia-attention flash"),
    ("--aia-method fused", "--aia-attention fused"),
    ("--aia-method probe", "--aia-attention sampled"),
    ("--aia-attention=dense", "--aia-attention eager"),
    ("--ntp-normalizer sample", "--loss-normalization sample"),
    ("--prompt_drop=0.25", "--cfg-drop-prob 0.25"),
    ("--keep-checkpoints 3", "--save-total-limit 3"),
    ("--rebase-data", "--reset-data"),
    ("--no-rebase-data", "--no-reset-data"),
    ("--max-damaged-samples 7", "--max-corrupt-samples 7"),
    ("--blend 2 A 1 B", "--data-path 2 A 1 B"),
    ("--attention-backend fused", "--attention-backend cudnn"),
    ("--attention-backend unfused", "--aia-attention eager"),
    ("--attention-backend local", "--aia-attention eager --transformer-impl local"),
]


@pytest.mark.parametrize(("old", "new"), OLD_AND_NEW)
def test_an_old_flag_is_an_alias_and_the_banner_says_so(old, new):
    command_line = parse_with_notes(old.split())
    assert command_line.config == parse(new.split())
    (note,) = command_line.notes
    assert note.startswith(f"{old.replace('prompt_drop', 'prompt-drop')} is taken as --")
    assert parse_with_notes(new.split()).notes == []


def test_every_old_name_and_value_means_something_there_is():
    settings = settings_by_name(Config())
    choices = {name: setting.kind.choices for name, setting in settings.items()}
    choices["aia_preset"] = tuple(aia_preset_table())
    assert set(RENAMED.values()) <= set(settings)
    assert not set(RENAMED) & set(settings)
    for (field, value), meant in TAKEN_AS.items():
        assert value not in choices[field]
        for name, new in meant.items():
            assert new in choices[name]


@pytest.mark.parametrize("backend", ["auto", "flash", "flash3", "flash4", "cudnn"])
def test_values_of_the_backend_that_are_ours_stay(backend):
    command_line = parse_with_notes(["--attention-backend", backend])
    assert command_line.config.model.attention_backend == backend
    assert command_line.notes == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            "--prompt-drop 0.1 --cfg-drop-prob 0.2",
            "--prompt-drop 0.1 is taken as --cfg-drop-prob 0.1, and --cfg-drop-prob is there too",
        ),
        ("--blend 1 A --data-path B", "--data-path is there too; leave one of them out"),
        ("--aia-attention flash --attention-backend unfused", "--aia-attention is there too"),
        ("--aia-method", "--aia-attention: expected 1 argument"),
        ("--aia-method best", "--aia-attention must be one of auto, eager, flash, fused, sampled"),
    ],
)
def test_contradictions_are_one_line(argv, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(argv.split())


OLD_FILE = """
aia: {aia_preset: janus_released_code, aia_sets: intended, aia_method: rectangle, aia_probe_rows: 9}
data:
  data_path: [somewhere]
  blend: []
  prompt_drop: 0.25
  max_damaged_samples: 7
training: {ntp_normalizer: token}
checkpoint: {keep_checkpoints: 3, rebase_data: true}
"""


def test_the_configuration_of_an_old_run_loads(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(OLD_FILE)
    command_line = parse_with_notes(["--config", str(file)])
    expected = {
        "aia_preset": "released_code",
        "aia_query_key_sets": "paper",
        "aia_attention": "flash",
        "aia_sampled_queries": 9,
        "data_path": ("somewhere",),
        "cfg_drop_prob": 0.25,
        "max_corrupt_samples": 7,
        "loss_normalization": "token",
        "save_total_limit": 3,
        "reset_data": True,
    }
    found = {name: value_of(command_line.config, name) for name in expected}
    assert found == expected
    (note,) = command_line.notes
    assert all(f"{old} is now {new}" in note for old, new in RENAMED.items())
    assert read_run_config(str(file)).data.cfg_drop_prob == 0.25


@pytest.mark.parametrize(
    "text", ["data: {data_path: [], blend: ['2', A]}", "blend: ['2', A]\ndata_path: []"]
)
def test_the_blend_of_an_old_run_loads(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert parse(["--config", str(file)]).data.data_path == ("2", "A")


def test_two_names_of_one_setting_in_a_file_are_refused(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("prompt_drop: 0.1\ncfg_drop_prob: 0.2")
    with pytest.raises(ValueError, match=r"cfg_drop_prob is 0.1 and, by another name, 0.2; keep"):
        parse(["--config", str(file)])


def test_the_documents_list_every_old_name():
    text = (Path(__file__).parents[2] / "docs/from_megatron_lm.md").read_text()
    table = {
        tuple(re.findall(r"`(--[a-z-]+)", row))
        for row in text.splitlines()
        if row.startswith("| `--")
    }
    assert {(flag(old), flag(new)) for old, new in RENAMED.items()} <= table
    assert all(f"{value}`" in text for _, value in TAKEN_AS)
    assert not set(RENAMED) & set(GROUP_OF_FIELD)
