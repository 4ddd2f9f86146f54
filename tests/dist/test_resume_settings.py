"""A resumed run trains with the optimizer settings of its own flags."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn

from megatron_aia.config import Config
from megatron_aia.runtime.parallel import destroy_parallel
from megatron_aia.training.trainer import Trainer

SETTINGS = {
    "lr": 2e-4,
    "min_lr": 1e-4,
    "weight_decay": 0.3,
    "adam_beta1": 0.7,
    "adam_beta2": 0.8,
    "adam_eps": 1e-5,
}
LAYOUTS = {
    "replicated": (1, Layout()),
    "distributed": (2, Layout({"use_distributed_optimizer": True})),
    "PP 2": (2, Layout({"pipeline_model_parallel_size": 2})),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def settings_of(config: Config) -> list[dict[str, Any]]:
    """Return the settings of every group of parameters after a step, and the steps it has seen."""
    trainer = Trainer(config)
    trainer._step(trainer.feed.step(trainer.progress.position))
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        for group in trainer.optimizer.param_groups
    ]
    destroy_parallel()
    return groups


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_setting_is_in_force(name: str, data: Path, tmp_path: Path) -> None:
    world_size, layout = LAYOUTS[name]
    config = run_config(data, layout, 2, save=str(tmp_path))
    spawn(train, world_size, config)
    training = replace(config.training, train_iters=6, lr_decay_style="constant", **SETTINGS)
    resumed = replace(
        config,
        training=training,
        checkpoint=replace(config.checkpoint, save=None, load=str(tmp_path)),
    )
    fresh = replace(resumed, checkpoint=replace(resumed.checkpoint, load=None))
    expected = spawn(
        settings_of, world_size, replace(fresh, training=replace(training, lr_warmup_iters=0))
    )
    found = spawn(settings_of, world_size, resumed)
    decays = set()
    for own, other in zip(found, expected, strict=True):
        assert own["lr"] == SETTINGS["lr"]
        decays.add(own["weight_decay"])
        steps = [group.pop("step", None) for group in (own, other)]
        assert steps in ([None, None], [3, 1])
        assert own == other
    assert decays == {0.0, 0.3}
