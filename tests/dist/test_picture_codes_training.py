"""A run that makes the codes of its images itself is the run on shards that hold them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from support.layouts import Layout
from support.picture_data import build_twice, write_janus_tokeniser
from support.runs import run_config, train_all
from support.spawn import spawn

LAYOUTS = {
    "PP 2": {"pipeline_model_parallel_size": 2},
    "TP 2": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
}


def test_losses_are_those_of_stored_codes(tmp_path: Path) -> None:
    """Tensor ranks and both ends of a pipeline encode for themselves, and must agree."""
    tokeniser = write_janus_tokeniser(tmp_path / "vq", "transformers")
    offline, online = build_twice(tmp_path, tokeniser, "janus_pro")

    def config(data: Path, layout: dict[str, Any], folder: str, **images: str) -> Any:
        run = run_config(data, Layout(layout, family="janus_pro"), 3, save=str(tmp_path / folder))
        return replace(
            run,
            # Another draw of random numbers would show in the losses.
            model=replace(run.model, hidden_dropout=0.1),
            data=replace(run.data, **images),
        )

    configs = {}
    for name, layout in LAYOUTS.items():
        configs[f"{name} stored"] = config(offline, layout, f"{name} stored")
        made = {"image_tokenizer": str(tokeniser)}
        configs[f"{name} made"] = config(online, layout, f"{name} made", **made)
    records = spawn(train_all, 2, configs)
    for name in LAYOUTS:
        stored, made = records[f"{name} stored"], records[f"{name} made"]
        assert [record.iteration for record in stored] == [1, 2, 3]
        for one, other in zip(stored, made, strict=True):
            assert (one.loss, one.grad_norm) == (other.loss, other.grad_norm)
            assert one.losses["ntp"] == other.losses["ntp"]
            assert one.losses["aia"] == other.losses["aia"]
            assert set(one.intensity) == set(other.intensity)
