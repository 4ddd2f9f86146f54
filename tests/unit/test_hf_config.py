"""config.json in every form that Transformers writes or people edit: read right, or refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megatron_aia.checkpoint.tensor_files import INDEX_FILE, TensorFolder
from megatron_aia.models import load_hf_format

EMU3: dict[str, Any] = {"model_type": "Emu3", "rope_theta": 12345.0}
JANUS: dict[str, Any] = {"model_type": "janus", "text_config": {"rope_theta": 12345.0}}


def read(document: dict[str, Any]) -> Any:
    family = "emu3" if document["model_type"] == "Emu3" else "janus_pro"
    return load_hf_format(family).model_config(document)


def changed(document: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Change fields of the decoder's part."""
    if "text_config" in document:
        return {**document, "text_config": {**document["text_config"], **fields}}
    return {**document, **fields}


BOTH = pytest.mark.parametrize("document", [EMU3, JANUS], ids=["emu3", "janus_pro"])


@BOTH
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rope_scaling": None, "rope_parameters": None},
        {"rope_theta": 5.0, "rope_scaling": {"rope_type": "default", "rope_theta": 12345.0}},
        {"rope_theta": 5.0, "rope_parameters": {"rope_theta": 12345}},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}},
        {"rope_scaling": {"type": "default"}},
    ],
)
def test_theta_is_found_wherever_it_stands(document: dict[str, Any], fields: Any) -> None:
    assert read(changed(document, **fields)).rotary_base == 12345


@BOTH
@pytest.mark.parametrize(
    "fields",
    [
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 12345.0, "factor": 2.0}},
        {"rope_parameters": {"full_attention": {"rope_theta": 12345.0}}},
        {"rope_parameters": {"rope_theta": 12345.0, "partial_rotary_factor": 0.5}},
        {"rope_parameters": {"rope_theta": None}},
        {"rope_parameters": [12345.0]},
        {"rope_theta": None},
        {"rope_theta": "12345"},
        {"rope_theta": 0.5},
        {"rms_norm_eps": None},
        {"hidden_size": None},
        {"num_key_value_heads": None},
        {"num_hidden_layers": True},
        {"head_dim": 1.5},
    ],
)
def test_what_cannot_be_read_right_is_refused(document: dict[str, Any], fields: Any) -> None:
    with pytest.raises(ValueError, match=r"^config\.json: "):
        read(changed(document, **fields))


@pytest.mark.parametrize("value", [None, {}])
def test_parts_may_be_null(value: Any) -> None:
    assert read({**EMU3, "vq_config": value}) == read(EMU3)
    assert read({**JANUS, "vq_config": value, "vision_config": value}) == read(JANUS)


@pytest.mark.parametrize(
    "fields",
    [
        {"vision_config": []},
        {"vq_config": "x"},
        {"vision_config": {"mlp_ratio": None}},
        {"vision_config": {"hidden_size": None}},
        {"vision_config": {"num_hidden_layers": None}},
        {"vq_config": {"num_embeddings": None}},
    ],
)
def test_parts_of_the_tower_are_checked(fields: Any) -> None:
    with pytest.raises(ValueError, match=r"^config\.json: "):
        read({**JANUS, **fields})


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors is missing"):
        TensorFolder(tmp_path)
    save_file({"b": torch.zeros(2)}, tmp_path / "model-00002-of-00002.safetensors")
    assert set(TensorFolder(tmp_path).shapes) == {"a", "b"}


@pytest.mark.parametrize("index", ['{"weight_map": []}', "{}", '{"weight_map": {"a": 1}}', "null"])
def test_an_index_that_is_none_is_refused(tmp_path: Path, index: str) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / INDEX_FILE).write_text(index)
    with pytest.raises(ValueError, match=f"{INDEX_FILE} cannot be read"):
        TensorFolder(tmp_path)
