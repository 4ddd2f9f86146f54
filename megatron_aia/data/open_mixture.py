"""Opening the data of a run: plain folders with a task ratio, a blend, or a mixture file."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from megatron_aia.config import DataConfig
from megatron_aia.config.data_sources import blend_pairs, mixture_file
from megatron_aia.config.locations import is_url
from megatron_aia.data.mixture import Mixture
from megatron_aia.data.mixture_file import MixturePlan, Source, read_mixture_file
from megatron_aia.data.permutation import Stream, hash_integers, splitmix64_array
from megatron_aia.data.phases import Phase
from megatron_aia.data.sample_pool import SamplePool
from megatron_aia.data.shuffle import build_shuffle
from megatron_aia.data.task_mixture import mix_by_task, parse_task_ratio
from megatron_aia.shards.folder import DESCRIPTION_FILE, read_description
from megatron_aia.shards.index import ShardIndex, open_index


def open_mixture(data: DataConfig, seed: int, codebook_size: int) -> Mixture:
    """Open the data folders of a run and mix them.

    Args:
        data: names folders, a blend or a mixture file.
        seed: of the run.
        codebook_size: of the model.

    Raises:
        ValueError: no data is named, a folder is damaged or made for a larger codebook, a mixture
            file is wrong, or a source has no samples.
    """
    plan, window = _plan(data), data.shuffle_window_shards

    def open_folder(folder: str) -> ShardIndex:
        return _open_folder(folder, codebook_size, data.data_cache_path)

    if plan is None:
        indexes = [open_folder(folder) for folder in data.data_path]
        return mix_by_task(indexes, parse_task_ratio(data.task_ratio), seed, window)
    return mix_sources(plan, seed, open_folder, window)


def data_folders(data: DataConfig) -> list[str]:
    """Return the data folders of a run, those of its mixture file included, in order.

    Raises:
        ValueError: no data is named, or the mixture file is wrong.
    """
    plan = _plan(data)
    return list(data.data_path) if plan is None else [source.folder for source in plan.sources]


def mix_sources(
    plan: MixturePlan,
    seed: int,
    open_folder: Callable[[str], ShardIndex],
    window_shards: int = 0,
) -> Mixture:
    """Return the mixture of a plan.

    Args:
        plan: sources and phases.
        seed: chooses every order. Which samples a limit keeps does not depend on it.
        open_folder: indexes a data folder.
        window_shards: shards of a window to shuffle in; 0 shuffles over all of a source.

    Raises:
        ValueError: a folder cannot be opened, or a source has no samples.
    """
    numbers: dict[str, int] = {}
    indexes: list[ShardIndex] = []
    pools = []
    for source in plan.sources:
        if source.folder not in numbers:
            numbers[source.folder] = len(indexes)
            try:
                indexes.append(open_folder(source.folder))
            except ValueError as error:
                raise ValueError(f"{source.place}: {error}") from error
        pools.append(_pool(source, indexes, numbers[source.folder], seed, window_shards))
    unused = "as no phase gives them a weight"
    return Mixture(indexes, pools, plan.phases, seed, unused, window_shards)


def _plan(data: DataConfig) -> MixturePlan | None:
    """Return the plan of a mixture file or a blend; None for plain folders."""
    file = mixture_file(data)
    if file:
        return read_mixture_file(file)
    if data.blend:
        pairs = blend_pairs(data.blend)
        # A folder's number, not its path, decides its order: it may be moved.
        sources = [
            Source(str(number), folder, place="--blend")
            for number, (_, folder) in enumerate(pairs, start=1)
        ]
        return MixturePlan(tuple(sources), (Phase(tuple(weight for weight, _ in pairs)),))
    if not data.data_path:
        raise ValueError(
            "--data-path is missing: name one or more folders of shards; "
            "tools/build_shards.py writes them"
        )
    return None


def _pool(
    source: Source, indexes: Sequence[ShardIndex], number: int, seed: int, window_shards: int
) -> SamplePool:
    index = indexes[number]
    samples, meaning = np.arange(len(index)), [index.fingerprint]
    name = "samples"
    if source.task is not None:
        samples = np.flatnonzero(index.tasks == source.task)
        name = f"{source.task.name.lower()} samples"
        meaning.append(source.task.name)
    if not len(samples):
        raise ValueError(
            f"{source.place}: {source.folder} has no {name}; take the source out, or name a folder "
            "that has some"
        )
    found = len(samples)
    if source.limit is not None:
        meaning.append(f"limit {source.limit}")
        samples = choose(samples, source.limit)
    of_all = f"of {found} " if len(samples) < found else ""
    stream = int.from_bytes(hashlib.sha256(source.name.encode()).digest()[:8], "big")
    return SamplePool(
        name=source.name,
        label=f"{of_all}{name} of {source.name} ({source.folder})",
        members={number: samples},
        meaning=(source.name, meaning),
        shuffle=build_shuffle(indexes, {number: samples}, window_shards, seed, stream),
    )


def choose(samples: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` of ``samples``, or all if there are not so many, in their order.

    The choice is a hash of the sample's number: spread over the folder, the same for every run,
    and a smaller count keeps a part of what a larger one keeps.
    """
    key = np.uint64(hash_integers(Stream.LIMIT))
    hashes = splitmix64_array(samples.astype(np.uint64) ^ key)
    return np.sort(samples[np.argsort(hashes, kind="stable")[:count]])


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
