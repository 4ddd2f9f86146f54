"""Opens a folder of a Transformers model: by its processor, or by a family of this project."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
)

from megatron_aia.aia.roles import AIA_TASKS, Task
from megatron_aia.checkpoint.conversion import HF_CONFIG
from megatron_aia.checkpoint.tensor_files import TensorFolder, read_json
from megatron_aia.config import Config
from megatron_aia.config.settings import flag
from megatron_aia.data.sample import SampleEncoder
from megatron_aia.data.tokenizer import load_text_tokenizer
from megatron_aia.generation.tokenizers import open_image_tokenizer, tokenizer_files
from megatron_aia.measurement.hf_model import HFModel, MeasuredInputs
from megatron_aia.measurement.options import MeasuredModelOptions
from megatron_aia.measurement.processor_inputs import (
    draws_images,
    generation_inputs,
    has_template,
    image_token_ids,
    understanding_inputs,
)
from megatron_aia.measurement.recorder import IntensityTerm
from megatron_aia.measurement.samples import InactiveSampleError, read_sample
from megatron_aia.models import family_of_model_type, load_hf_format, load_model_spec
from megatron_aia.models.hugging_face import HFFormat, HFSource
from megatron_aia.models.image_tokenizers import owner_of_image_tokenizer
from megatron_aia.runtime.device import device
from megatron_aia.shards.image_tokenizer import ImageTokenizer
from megatron_aia.shards.index import ShardIndex
from megatron_aia.shards.raw_sample import CorruptSampleError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_ANY_CODE = 1 << 16
"""Codes are not read by a processor, so each that a shard can hold is allowed."""


@dataclass(frozen=True)
class ProcessorReader:
    """Writes samples by a model's processor and chat template."""

    processor: Any
    image_ids: Sequence[int]
    """Of the tokens that stand for an image."""
    max_length: int
    tasks: Sequence[Task]

    @property
    def prompts(self) -> str:
        """See ``ReadsSamples``."""
        if has_template(self.processor):
            return "by the processor's chat template"
        return "a line a turn, because the processor has no chat template"

    def read(self, index: ShardIndex, number: int, task: Task) -> MeasuredInputs:
        """See ``ReadsSamples``."""
        write = understanding_inputs if task == Task.UNDERSTANDING else generation_inputs
        try:
            raw = index.read(number, _ANY_CODE)
            return write(self.processor, raw, self.image_ids, self.max_length)
        except CorruptSampleError:
            raise InactiveSampleError("corrupt") from None


@dataclass(frozen=True)
class FamilyReader:
    """Writes samples as a family of this project does in training, codes and pictures alike."""

    model: PreTrainedModel
    config: Config
    hf_format: HFFormat
    encoder: SampleEncoder
    max_length: int
    tasks: Sequence[Task] = AIA_TASKS
    prompts: str = "as this project trains the model"

    @torch.no_grad()
    def read(self, index: ShardIndex, number: int, task: Task) -> MeasuredInputs:
        """See ``ReadsSamples``."""
        codebook_size = self.config.model.codebook_size
        sample = read_sample(index, number, task, self.encoder, codebook_size, self.max_length)
        seen = [torch.from_numpy(image.load()) for image in sample.tokens.images]
        inputs = self.hf_format.reference_inputs(
            self.model,
            self.config.model,
            torch.from_numpy(sample.tokens.tokens)[None].to(self.model.device),
            torch.stack(seen).to(self.model.device) if seen else None,
        )
        term = IntensityTerm(
            0, torch.from_numpy(sample.term.queries), torch.from_numpy(sample.term.keys)
        )
        return MeasuredInputs(inputs, term, len(sample.tokens), sample.images)


def open_hf_model(options: MeasuredModelOptions) -> HFModel:
    """Open ``--hf-path``; nothing is fetched, none of its code runs.

    Raises:
        ValueError: the folder is missing, or it is of a model that Transformers does not know or
            that has no processor; naming it.
    """
    folder = options.hf_path
    assert folder is not None
    if not (folder / HF_CONFIG).is_file():
        raise ValueError(f"--hf-path {folder}: there is no {HF_CONFIG} in it")
    try:
        family = family_of_model_type(read_json(folder / HF_CONFIG).get("model_type"))
        if family is not None:
            return _open_family_model(family, folder, options)
        for name in ("tokenizer", "image_tokenizer"):
            if getattr(options, name) is not None:
                raise ValueError(f"its processor has its own tokenisers; leave {flag(name)} out")
        return _open_processor_model(folder, options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--hf-path {folder} cannot be measured: {error}") from error


def _open_processor_model(folder: Path, options: MeasuredModelOptions) -> HFModel:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    reads_images = type(config) in AutoModelForImageTextToText._model_mapping
    auto = AutoModelForImageTextToText if reads_images else AutoModelForCausalLM
    model: Any = auto.from_pretrained(folder, dtype=_dtype(options), local_files_only=True)
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    if not hasattr(processor, "image_token"):
        raise ValueError("its processor has no image token")
    ids = options.image_token_ids or image_token_ids(config)
    most = options.max_length or int(config.get_text_config().max_position_embeddings)
    tasks = AIA_TASKS if draws_images(config) else (Task.UNDERSTANDING,)
    return HFModel(model.to(device()).eval(), ProcessorReader(processor, ids, most, tasks))


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
