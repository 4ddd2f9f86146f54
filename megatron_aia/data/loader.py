"""The micro-batches of a step, from the position of its first sample.

A step is ``global_batch_size`` consecutive positions. Packing, micro-batch size and data-parallel
size only lay these samples out, so they may all change when a run goes on from a checkpoint.
"""

from dataclasses import dataclass
from functools import partial

from megatron_aia.aia.roles import Task
from megatron_aia.config.tree import Config
from megatron_aia.data.batch import MicroBatch, build_micro_batch
from megatron_aia.data.folder import DESCRIPTION_FILE, read_description
from megatron_aia.data.index import open_index
from megatron_aia.data.mixture import RATIO_ORDER, Mixture, parse_task_ratio
from megatron_aia.data.packing import Row, deal_rows, plan_rows
from megatron_aia.data.sample import PromptBuilder
from megatron_aia.data.sample_reader import SampleReader
from megatron_aia.data.stand_ins import collect

_DESCRIBED_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class GlobalBatches(SampleReader):
    """The samples of every step, as the micro-batches of one data-parallel rank."""

    global_batch_size: int
    """Samples of a step, over all ranks."""
    micro_batch_size: int
    """Rows of a micro-batch."""
    data_parallel_rank: int
    data_parallel_size: int
    packing: bool
    """Put several samples into a row."""
    micro_batch_multiple: int
    """The number of micro-batches of a rank is a multiple of this."""
    pad_id: int
    """Token id of padding."""

    def plan(self, position: int) -> list[list[Row]]:
        """Return the rows of this rank's micro-batches of the step that begins at ``position``.

        Rows hold offsets from ``position``. Every rank gets equally many micro-batches,
        ``micro_batch_size`` rows each; a row may be empty.

        Raises:
            ValueError: a sample is too long, or a damaged one finds no stand-in.
        """
        return deal_rows(
            self._plan_rows(position),
            self.data_parallel_rank,
            self.data_parallel_size,
            self.micro_batch_size,
        )

    def build(self, position: int, rows: list[Row]) -> MicroBatch:
        """Read one micro-batch of ``plan``.

        Raises:
            DamageFound: samples of it are damaged.
            ValueError: a sample cannot be written as tokens, or a shard has changed.
            OSError: a shard cannot be read.
        """
        offsets = [offset for row in rows for offset in row]
        samples = iter(collect(partial(self.read, position + offset) for offset in offsets))
        return build_micro_batch(
            [[next(samples) for _ in row] for row in rows],
            self.seq_length,
            self.pad_id,
            self.image_size,
            [[position + offset for offset in row] for row in rows],
        )

    def step(self, position: int) -> list[MicroBatch]:
        """Read this rank's micro-batches of the step whose first sample is at ``position``.

        Raises:
            DamageFound: samples of it are damaged; known to all ranks by ``mark_damaged``, they
                get stand-ins, with which the step has other rows.
            ValueError: as ``plan`` and ``build``.
            OSError: a shard cannot be read.
        """
        return collect(partial(self.build, position, rows) for rows in self.plan(position))

    def describe(self) -> list[str]:
        """Return lines for the log: the samples, the mixture, tokens and padding."""
        lines = self.mixture.describe()
        positions = range(_DESCRIBED_STEPS * self.global_batch_size)
        drawn = [self.mixture.locate(position).task for position in positions]
        counts = ":".join(str(drawn.count(task)) for task in RATIO_ORDER)
        rows = [self._plan_rows(first) for first in positions[:: self.global_batch_size]]
        num_rows = sum(len(plan) for plan in rows)
        tokens = sum(self.planned_length(p) for p in positions)
        padding = 1 - tokens / (num_rows * self.seq_length)
        return [
            *lines,
            f"the first {len(positions)} samples are {counts} "
            "(generation:understanding:text:mixed), "
            f"{tokens / len(positions):.0f} tokens each on average",
            f"{num_rows / _DESCRIBED_STEPS:.1f} rows of {self.seq_length} tokens a step "
            f"with packing {'on' if self.packing else 'off'}, {padding:.1%} of them padding",
        ]

    def _plan_rows(self, position: int) -> list[Row]:
        """Lay out the step at ``position``; rows hold offsets from it."""
        lengths = [
            self.planned_length(position + offset) for offset in range(self.global_batch_size)
        ]
        multiple = self.micro_batch_size * self.data_parallel_size * self.micro_batch_multiple
        return plan_rows(lengths, self.seq_length, self.packing, multiple)


def build_global_batches(
    config: Config,
    prompt: PromptBuilder,
    prompt_fingerprint: str,
    pad_id: int,
    codebook_size: int,
    data_parallel_rank: int,
    data_parallel_size: int,
    micro_batch_multiple: int,
    image_size: int = 0,
) -> GlobalBatches:
    """Open the data folders of a run. Whether its samples fit a row, ``check`` tells.

    ``image_size`` is 0 for a model that looks at codes only, and on every pipeline stage but the
    first, which alone needs the images.

    Raises:
        ValueError: no data folder is given, one is damaged or made for a larger codebook, or a
            task of the ratio has no samples.
    """
    data = config.data
    if not data.data_path:
        raise ValueError(
            "--data-path is missing: name one or more folders of shards; "
            "tools/build_shards.py writes them"
        )
    for folder in data.data_path:
        _check_codebook(folder, codebook_size)
    indexes = [open_index(folder, data.data_cache_path) for folder in data.data_path]
    sources = {task: indexes for task in Task}
    return GlobalBatches(
        mixture=Mixture(sources, parse_task_ratio(data.task_ratio), config.run.seed),
        prompt=prompt,
        prompt_fingerprint=prompt_fingerprint,
        seq_length=data.seq_length,
        global_batch_size=data.global_batch_size,
        micro_batch_size=data.micro_batch_size,
        data_parallel_rank=data_parallel_rank,
        data_parallel_size=data_parallel_size,
        packing=data.packing,
        micro_batch_multiple=micro_batch_multiple,
        pad_id=pad_id,
        codebook_size=codebook_size,
        prompt_drop=data.prompt_drop,
        overlong=data.overlong_samples,
        image_size=image_size,
    )


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
