"""What the table of model families promises, and what a wrong family is answered."""

import re
from dataclasses import replace
from typing import Any

import pytest

from megatron_aia import models
from megatron_aia.cli import parse
from megatron_aia.config import Config, ParallelConfig
from megatron_aia.config.families import FAMILIES
from megatron_aia.config.files import with_values
from megatron_aia.models import check_family, extra_family, load_family, preset_table
from megatron_aia.models.family import ModelFamily, Preset


def test_every_preset_fits_its_family() -> None:
    for family in models.families():
        assert family.demo_preset in family.presets
        for name, preset in family.presets.items():
            config = preset.build()
            assert config.run.preset == name
            assert config.model.model == family.name
            assert type(config.model) is family.model_config
            assert config.aia.aia_preset in models.aia_preset_table()


@pytest.mark.parametrize(
    ("preset", "needs"),
    [
        ("emu3_8b", r"--data-path \(.*\) and --load \("),
        ("janus_pro_7b", r"--data-path \(.*\) and --load \("),
        ("janus_pro_1b", r"--data-path \(.*\) and --load \("),
        ("unifork_0_5b", r"--data-path \(.*\) and --load \("),
    ],
)
def test_a_preset_says_what_it_needs(preset: str, needs: str) -> None:
    config = preset_table()[preset].build()
    with pytest.raises(ValueError, match=f"preset {preset} needs {needs}"):
        check_family(config)
    check_family(with_values(config, {"data_path": ("shards",), "load": "weights"}))
    with pytest.raises(ValueError, match=f"preset {preset} needs --load"):
        check_family(with_values(config, {"data_path": ("shards",)}))


@pytest.mark.parametrize("preset", ["emu3_demo", "janus_demo", "unifork_demo"])
def test_a_demo_needs_nothing(preset: str) -> None:
    check_family(preset_table()[preset].build())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_size": 7}, "--patch-size 7 does not divide --image-size 64; use 1, 2, 4, "),
        (
            {"vision_num_attention_heads": 3},
            "--vision-num-attention-heads 3 does not divide --vision-hidden-size 64; use ",
        ),
        ({"vision_ffn_hidden_size": 63}, "does not divide --vision-ffn-hidden-size 63; use 1"),
    ],
)
def test_sizes_of_the_tower(values: dict[str, Any], message: str) -> None:
    config = with_values(preset_table()["janus_demo"].build(), values)
    layout = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=1)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_family(replace(config, parallel=layout))


def wrong_preset() -> Config:
    return Config(model=models.ModelConfig(num_leyers=2))  # type: ignore[call-arg]


OTHER = ModelFamily(
    name="other",
    package=__name__,
    presets={"other_demo": Preset(wrong_preset), "another": Preset(Config)},
    demo_preset="other_demo",
)
FAMILY = OTHER


def test_two_families_of_one_name() -> None:
    with (
        pytest.raises(ValueError, match="there is a model family emu3 already"),
        extra_family("emu3", __name__),
    ):
        pass
    assert FAMILIES["emu3"] == "megatron_aia.models.emu3.family"


def test_a_family_under_another_name() -> None:
    with extra_family("third", __name__), pytest.raises(ValueError, match="other, not third"):
        load_family("third")


def test_two_presets_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = replace(OTHER, presets={"emu3_demo": Preset(Config)})
    monkeypatch.setitem(globals(), "FAMILY", twin)
    with (
        extra_family("other", __name__),
        pytest.raises(ValueError, match="emu3 and other both have a preset emu3_demo; rename one"),
    ):
        parse(["--preset", "emu3_demo"])


def test_a_preset_with_an_unknown_setting() -> None:
    with (
        extra_family("other", __name__),
        pytest.raises(ValueError, match=r"preset other_demo cannot be built: .*'num_leyers'"),
    ):
        parse(["--preset", "other_demo"])


def test_an_unknown_preset_names_all() -> None:
    with (
        extra_family("other", __name__),
        pytest.raises(ValueError, match=r"unknown --preset lost; use another, emu3_8b, .* or u"),
    ):
        parse(["--preset", "lost"])
