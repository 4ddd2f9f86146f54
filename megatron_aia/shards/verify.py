"""Everything that is wrong with a data folder, rather than the first thing."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Optional

from megatron_aia.aia.roles import Task
from megatron_aia.config.value_types import POSITIONAL
from megatron_aia.runtime.workers import available_cores, map_in_processes
from megatron_aia.shards.cache import cache_folder
from megatron_aia.shards.folder import (
    DESCRIPTION_FILE,
    list_shards,
    listed_shards,
    read_description,
)
from megatron_aia.shards.index import ShardIndex, save_index
from megatron_aia.shards.problems import Problem, quote
from megatron_aia.shards.shard import Shard
from megatron_aia.shards.verify_shard import ShardJob, verify_shard
from megatron_aia.shards.walk import combine, find_duplicates

_LARGEST_CODEBOOK = 1 << 16


@dataclass(frozen=True)
class FolderReport:
    """What was found in a data folder."""

    folder: str
    num_shards: int
    num_bytes: int
    num_samples: Counter[str]
    """By task; samples with a damaged header or JSON are not among them."""
    problems: list[Problem]
    has_index: bool
    """A run would make an index of it."""


@dataclass
class VerifyOptions:
    """Settings of ``verify_folder``."""

    folders: Annotated[tuple[str, ...], POSITIONAL]
    """Folders of shards."""
    decode: bool = False
    """Decode pictures too; without it, only their checksums are compared."""
    repair_list: Optional[Path] = None
    """File to write: a JSON line for each problem, with shard, byte, key, kind and remedy."""
    num_workers: int = field(default_factory=available_cores)
    """Processes that share the shards."""
    codebook_size: Optional[int] = None
    """Image codes are below this; unset, what dataset.json says."""
    write_index: bool = False
    """Keep the index that a run would make first; not of a folder that a run would refuse."""
    data_cache_path: Optional[str] = None
    """Where the index is kept; unset, in the folder itself."""

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: naming the flag, its value and a remedy.
        """
        if not self.folders:
            raise ValueError("no folder is given; name one or more folders of shards")
        if self.num_workers < 0:
            raise ValueError(f"--num-workers {self.num_workers} is out of range; use 0 or more")
        if self.codebook_size is not None and not 1 <= self.codebook_size <= _LARGEST_CODEBOOK:
            raise ValueError(
                f"--codebook-size {self.codebook_size} is out of range; use 1 to "
                f"{_LARGEST_CODEBOOK}"
            )
        if self.write_index:
            for folder in self.folders:
                cache_folder(folder, self.data_cache_path)


def verify_folder(folder: str, options: VerifyOptions) -> FolderReport:
    """Read every shard of a folder and note all that is wrong.

    Raises:
        ValueError: there is no such folder, or it has no shards.
        OSError: a worker process was ended.
    """
    shards = list_shards(folder)
    problems: list[Problem] = []
    description = _read_description(folder, problems)
    codebook_size = options.codebook_size or _codebook_size(description)
    jobs = [ShardJob(shard, options.decode, codebook_size) for shard in shards]
    results = list(map_in_processes(verify_shard, jobs, options.num_workers, "verify", "shards"))
    table, fingerprint = combine([result.part for result in results])
    duplicates = list(find_duplicates(shards, table))
    for result in results:
        problems += [*result.against_index, *result.in_samples]
    problems += duplicates
    num_samples = Counter(Task(task).name.lower() for task in table.tasks.tolist())
    problems += _compare(folder, description, shards, num_samples)
    has_index = not duplicates and not any(result.against_index for result in results)
    if options.write_index and has_index and len(table):
        cache = cache_folder(folder, options.data_cache_path)
        save_index(ShardIndex(folder, shards, table, fingerprint, cache))
    return FolderReport(
        folder=folder,
        num_shards=len(shards),
        num_bytes=sum(shard.size for shard in shards),
        num_samples=num_samples,
        problems=problems,
        has_index=has_index,
    )


def _read_description(folder: str, problems: list[Problem]) -> dict[str, Any]:
    try:
        return read_description(folder) or {}
    except ValueError as error:
        name = f"{folder}/{DESCRIPTION_FILE}"
        text = str(error).removeprefix(f"{name}: ")
        problems.append(Problem(name, 0, "", "dataset.json", text))
        return {}


def _codebook_size(description: dict[str, Any]) -> int:
    noted = description.get("codebook_size")
    return noted if isinstance(noted, int) and noted > 0 else _LARGEST_CODEBOOK


def _compare(
    folder: str, description: dict[str, Any], shards: tuple[Shard, ...], found: Counter[str]
) -> Iterator[Problem]:
    """Yield what ``dataset.json`` says and the shards do not."""
    name = f"{folder}/{DESCRIPTION_FILE}"
    noted = description.get("num_samples", found)
    if noted != found:
        text = f"it counts {quote(noted)} samples, and {dict(found)} are there"
        yield Problem(name, 0, "", "dataset.json", text)
    try:
        listed = listed_shards(description)
    except ValueError as error:
        text = str(error).removeprefix(f"{DESCRIPTION_FILE}: ")
        yield Problem(name, 0, "", "dataset.json", text)
        return
    if listed is None:
        return
    expected, sizes = dict(listed), {shard.name: shard.size for shard in shards}
    for shard in sorted(expected.keys() | sizes.keys()):
        if shard not in sizes:
            text = "is in the list of dataset.json, and is not there"
        elif shard not in expected:
            text = "is not in the list of dataset.json"
        else:
            text = f"has {sizes[shard]} bytes, and {expected[shard]} by dataset.json"
        if expected.get(shard) != sizes.get(shard):
            yield Problem(f"{folder}/{shard}", 0, "", "dataset.json", text)
