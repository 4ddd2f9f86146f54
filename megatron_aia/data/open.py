"""From the configuration to the data of a run: what is mixed, its folders, its micro-batches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from megatron_aia.config import Config, DataConfig
from megatron_aia.config.data_sources import blend_pairs, mixture_file, named_folders
from megatron_aia.config.layout import length_multiple
from megatron_aia.config.locations import is_url
from megatron_aia.data.loader import StepLoader
from megatron_aia.data.mix_sources import mix_sources
from megatron_aia.data.mixture import Mixture
from megatron_aia.data.mixture_file import read_mixture_file
from megatron_aia.data.mixture_plan import MixturePlan, plan_blend, plan_tasks
from megatron_aia.data.sample import SampleEncoder
from megatron_aia.data.tokenizer import TextTokenizer, load_text_tokenizer
from megatron_aia.shards.folder import (
    CODEBOOK_FILE,
    DESCRIPTION_FILE,
    TOKENIZER_FILE,
    read_description,
)
from megatron_aia.shards.index import ShardIndex, open_index


def open_batches(
    config: Config,
    make_encoder: Callable[[TextTokenizer], SampleEncoder],
    loads_images: bool = True,
    data_rank: int = 0,
    data_size: int = 1,
    micro_batch_multiple: int = 1,
) -> StepLoader:
    """Open the data of a run for one data-parallel rank, and check every sample.

    Args:
        config: of the run.
        make_encoder: how the model writes samples, with the tokeniser of the run.
        loads_images: see ``build_step_loader``.
        data_rank: data-parallel rank.
        data_size: data-parallel size.
        micro_batch_multiple: see ``build_step_loader``.

    Raises:
        ValueError: data or tokeniser are missing, damaged, or do not fit the model, or a sample
            does not fit a sequence.
    """
    encoder = make_encoder(load_text_tokenizer(_tokenizer_path(config.data)))
    batches = build_step_loader(
        config, encoder, loads_images, data_rank, data_size, micro_batch_multiple
    )
    batches.check()
    return batches


def validation_config(config: Config) -> Config:
    """Return the configuration that opens the validation data: its folders, whole prompts."""
    data = replace(
        config.data,
        data_path=config.data.valid_data_path,
        tokenizer_model=_tokenizer_path(config.data),
        cfg_drop_prob=0.0,
    )
    return replace(config, data=data)


def build_step_loader(
    config: Config,
    encoder: SampleEncoder,
    loads_images: bool = True,
    data_rank: int = 0,
    data_size: int = 1,
    micro_batch_multiple: int = 1,
) -> StepLoader:
    """Open the data folders of a run. Whether its samples fit a sequence, ``check`` tells.

    Args:
        config: of the run.
        encoder: of the model.
        loads_images: False on every pipeline stage but the first, which alone looks at them.
        data_rank: data-parallel rank.
        data_size: data-parallel size.
        micro_batch_multiple: the number of micro-batches of a rank is a multiple of this.

    Raises:
        ValueError: no data folder is given, one is damaged or made for a larger codebook, a
            mixture file is wrong, or a source has no samples.
    """
    data = config.data
    return StepLoader(
        mixture=open_mixture(data, config.run.seed, config.model.codebook_size),
        encoder=encoder,
        seq_length=data.seq_length,
        global_batch_size=data.global_batch_size,
        micro_batch_size=data.micro_batch_size,
        data_parallel_rank=data_rank,
        data_parallel_size=data_size,
        packing=data.packing,
        micro_batch_multiple=micro_batch_multiple,
        codebook_size=config.model.codebook_size,
        cfg_drop_prob=data.cfg_drop_prob,
        overlong=data.overlong_samples,
        loads_images=loads_images,
        length_multiple=length_multiple(config) if data.variable_seq_lengths else 0,
    )


def open_mixture(data: DataConfig, seed: int, codebook_size: int) -> Mixture:
    """Open the data folders of a run and mix them.

    Args:
        data: names folders, weighted folders or a mixture file.
        seed: of the run.
        codebook_size: of the model.

    Raises:
        ValueError: no data is named, a folder is damaged or made for a larger codebook, a mixture
            file is wrong, or a source has no samples.
    """

    def open_folder(folder: str) -> ShardIndex:
        return _open_folder(folder, codebook_size, data.data_cache_path)

    return mix_sources(plan_mixture(data), seed, open_folder, data.shuffle_window_shards)


def plan_mixture(data: DataConfig) -> MixturePlan:
    """Return what is mixed: a mixture file, weighted folders, or folders by a task ratio.

    Raises:
        ValueError: no data is named, or the mixture file is wrong.
    """
    file = mixture_file(data)
    if file:
        return read_mixture_file(file)
    pairs = blend_pairs(data)
    if pairs:
        return plan_blend(pairs)
    if not data.data_path:
        raise ValueError(
            "--data-path is missing: name one or more folders of shards; "
            "tools/build_shards.py writes them"
        )
    return plan_tasks(data.data_path, data.task_ratio)


def _tokenizer_path(data: DataConfig) -> str:
    if data.tokenizer_model:
        return data.tokenizer_model
    folder = plan_mixture(data).folders[0]
    if is_url(folder):
        raise ValueError(
            f"the data folder {folder} is a URL, and a tokeniser is read from files only; name the "
            "model's by --tokenizer-model"
        )
    path = Path(folder) / TOKENIZER_FILE
    if not path.exists():
        raise ValueError(f"{path} does not exist; name the model's tokeniser by --tokenizer-model")
    return str(path)


def image_tokenizer_path(data: DataConfig) -> Path | None:
    """Return what makes pictures of a run's codes: named, or beside its first folder; or None."""
    if data.image_tokenizer:
        return Path(data.image_tokenizer)
    beside = [Path(folder) / CODEBOOK_FILE for folder in named_folders(data)[:1]]
    return next((file for file in beside if file.is_file()), None)


def _open_folder(folder: str, codebook_size: int, cache_path: str | None) -> ShardIndex:
    if is_url(folder) and cache_path is None:
        raise ValueError(
            f"{folder} is a URL and cannot keep its index; name a folder for it by "
            "--data-cache-path"
        )
    _check_codebook(folder, codebook_size)
    return open_index(folder, cache_path)


def _check_codebook(folder: str, codebook_size: int) -> None:
    """Compare what the writer of a folder noted; the codes themselves are checked when read."""
    description = read_description(folder)
    if description is None:
        return
    written_with = description.get("codebook_size")
    if not isinstance(written_with, int):
        raise ValueError(
            f"{folder}/{DESCRIPTION_FILE}: no codebook_size in it; build the folder again"
        )
    if written_with > codebook_size:
        raise ValueError(
            f"{folder}: its images have codes of a codebook of {written_with}, the model's "
            f"has {codebook_size}; set --codebook-size or take data made for this model"
        )
