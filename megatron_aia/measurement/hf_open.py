"""Opens a folder of a Transformers model: by its processor, or by a family of this project."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from megatron_aia.aia.roles import AIA_TASKS, Task
from megatron_aia.checkpoint.conversion import HF_CONFIG
from megatron_aia.checkpoint.tensor_files import TensorFolder, read_json
from megatron_aia.config import Config
from megatron_aia.config.settings import flag
from megatron_aia.data.tokenizer import load_text_tokenizer
from megatron_aia.generation.tokenizers import open_image_tokenizer, tokenizer_files
from megatron_aia.measurement.hf_model import HFModel
from megatron_aia.measurement.hf_readers import FamilyReader, ProcessorReader, RoleReader
from megatron_aia.measurement.options import MeasuredModelOptions
from megatron_aia.measurement.processor_inputs import (
    draws_images,
    image_token_ids,
)
from megatron_aia.measurement.role_file import RoleFile
from megatron_aia.measurement.samples import SampleFolder
from megatron_aia.models import family_of_model_type, load_hf_format, load_model_spec
from megatron_aia.models.hugging_face import HFSource
from megatron_aia.models.image_tokenizers import owner_of_image_tokenizer
from megatron_aia.runtime.device import device
from megatron_aia.shards.image_tokenizer import ImageTokenizer

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def open_hf_model(options: MeasuredModelOptions, data: SampleFolder) -> HFModel:
    """Open ``--hf-path``; nothing is fetched, none of its code runs.

    Args:
        options: of the command.
        data: that it is to read.

    Raises:
        ValueError: the folder is missing, or it is of a model that Transformers does not know or
            that has no processor; naming it.
    """
    folder = options.hf_path
    assert folder is not None
    if not (folder / HF_CONFIG).is_file():
        raise ValueError(f"--hf-path {folder}: there is no {HF_CONFIG} in it")
    try:
        if isinstance(data, RoleFile):
            _refuse_tokenizers(options, "a role file holds ids")
            model = _load(folder, options)
            return HFModel(model, RoleReader(_max_length(model, options)))
        family = family_of_model_type(read_json(folder / HF_CONFIG).get("model_type"))
        if family is not None:
            return _open_family_model(family, folder, options)
        _refuse_tokenizers(options, "its processor has its own tokenisers")
        return _open_processor_model(folder, options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--hf-path {folder} cannot be measured: {error}") from error


def _refuse_tokenizers(options: MeasuredModelOptions, because: str) -> None:
    for name in ("tokenizer", "image_tokenizer"):
        if getattr(options, name) is not None:
            raise ValueError(f"{because}; leave {flag(name)} out")


def _load(folder: Path, options: MeasuredModelOptions) -> Any:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    reads_images = type(config) in AutoModelForImageTextToText._model_mapping
    auto = AutoModelForImageTextToText if reads_images else AutoModelForCausalLM
    model: Any = auto.from_pretrained(folder, dtype=_dtype(options), local_files_only=True)
    return model.to(device()).eval()


def _max_length(model: Any, options: MeasuredModelOptions) -> int:
    return options.max_length or int(model.config.get_text_config().max_position_embeddings)


def _open_processor_model(folder: Path, options: MeasuredModelOptions) -> HFModel:
    model = _load(folder, options)
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    if not hasattr(processor, "image_token"):
        raise ValueError("its processor has no image token")
    ids = options.image_token_ids or image_token_ids(model.config)
    tasks = AIA_TASKS if draws_images(model.config) else (Task.UNDERSTANDING,)
    return HFModel(model, ProcessorReader(processor, ids, _max_length(model, options), tasks))


def _open_family_model(family: str, folder: Path, options: MeasuredModelOptions) -> HFModel:
    if options.image_token_ids:
        raise ValueError(f"--image-token-ids: {family} knows its image tokens; leave it out")
    hf_format, source = load_hf_format(family), _source(folder)
    config = Config(model=hf_format.model_config(source.config))
    found = [options.tokenizer] if options.tokenizer else tokenizer_files(folder)
    text = next((path for path in found if path.exists()), None)
    if text is None:
        raise ValueError("there is no text tokeniser in it; pass --tokenizer")
    spec = load_model_spec(family)
    images = _image_tokenizer(folder, options, config, spec.image_area(config))
    model = hf_format.reference_model(source).to(device(), _dtype(options)).eval()
    encoder = spec.encoder(config, load_text_tokenizer(text), images)
    most = options.max_length or config.model.max_position_embeddings
    return HFModel(model, FamilyReader(model, config, hf_format, encoder, most))


def _source(folder: Path) -> HFSource:
    tensors = TensorFolder(folder)
    return HFSource(folder, read_json(folder / HF_CONFIG), list(tensors.shapes), tensors.read)


def _image_tokenizer(
    folder: Path, options: MeasuredModelOptions, config: Config, image_area: int | None
) -> ImageTokenizer | None:
    """Return the one that is named, or that stands in the model's folder."""
    if options.image_tokenizer is not None:
        return open_image_tokenizer(options.image_tokenizer, config, image_area)
    try:
        owner_of_image_tokenizer(folder)
        return open_image_tokenizer(folder, config, image_area)
    except ValueError:
        # Shards of codes need none; a picture that does ends the command.
        return None


def _dtype(options: MeasuredModelOptions) -> torch.dtype:
    assert options.dtype is not None
    return _DTYPES[options.dtype]
