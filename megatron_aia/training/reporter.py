"""Where records go: the console, a JSON-lines file and TensorBoard. Only rank 0 has one."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch.distributed as dist

from megatron_aia.analysis.records import (
    METRICS_FILE,
    JsonRecord,
    LogRecord,
    append_record,
    end_lines,
)
from megatron_aia.analysis.samples import SAMPLES_FILE, ShownSample, write_samples
from megatron_aia.analysis.validation import VALIDATION_FILE, ValidationRecord
from megatron_aia.checkpoint.run_state import CONFIG_FILE
from megatron_aia.config import Config
from megatron_aia.config.files import dump
from megatron_aia.runtime.parallel import Parallel, broadcast_failure
from megatron_aia.training.console import (
    EtaEstimator,
    format_banner,
    format_instruments,
    format_record,
    format_validation,
)
from megatron_aia.training.side_outputs import SideOutputs
from megatron_aia.training.tensorboard import TensorBoardLog

logger = logging.getLogger(__name__)


class Reporter:
    """Writes each record everywhere it belongs.

    Args:
        config: of the run; its ``save`` folder, else the TensorBoard folder, gets the records and
            all settings, as YAML that ``--config`` reads.
        start_iteration: steps done before this process started.
    """

    def __init__(self, config: Config, start_iteration: int) -> None:
        self._outputs = SideOutputs()
        self._figure_interval = config.logging.aia_figure_interval
        self._log_throughput = config.logging.log_throughput
        self._eta = EtaEstimator(start_iteration)
        folder = config.checkpoint.save or config.logging.tensorboard_dir
        self._records_folder = Path(folder) if folder else None
        if self._records_folder:
            self._records_folder.mkdir(parents=True, exist_ok=True)
            for name in (METRICS_FILE, VALIDATION_FILE, SAMPLES_FILE):
                end_lines(self._records_folder / name)
        self._first = self._first_of_run(start_iteration)
        self.settings = self._keep_settings(config)
        """Where the settings of the run start from and stand, for the banner."""
        self._tensorboard: TensorBoardLog | None = None
        if config.logging.tensorboard_dir:
            self._tensorboard = TensorBoardLog(
                Path(config.logging.tensorboard_dir), start_iteration
            )
            self._tensorboard.text(dump(config))

    def banner(self, lines: list[tuple[str, str]]) -> None:
        """Print what the run is, once."""
        logger.info(format_banner(lines))

    def write(self, record: LogRecord) -> None:
        """Report a record."""
        self._first = self._first or record
        logger.info(format_record(record, self._eta.update(record)))
        if self._log_throughput:
            logger.info(format_instruments(record))
        self._append(record, METRICS_FILE)
        if self._tensorboard:
            self._outputs.write("TensorBoard", partial(self._tensorboard.write, record))
            if self._figure_interval and record.iteration % self._figure_interval == 0:
                self._outputs.write("the figure of intensities", partial(self._draw, record))

    def write_validation(self, record: ValidationRecord) -> None:
        """Report a validation."""
        logger.info(format_validation(record))
        self._append(record, VALIDATION_FILE)
        if self._tensorboard:
            self._outputs.write("TensorBoard", partial(self._tensorboard.write_validation, record))

    def write_samples(self, iteration: int, samples: Sequence[ShownSample]) -> None:
        """Report what the model draws and answers after a step."""
        count, folder = len(samples), self._records_folder
        if folder and self._outputs.write(
            SAMPLES_FILE, partial(write_samples, folder, iteration, samples)
        ):
            logger.info("samples after iteration %d: %d in %s", iteration, count, folder)
        if self._tensorboard:
            for sample in samples:
                write = partial(self._tensorboard.write_sample, sample, iteration)
                self._outputs.write("TensorBoard", write)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._tensorboard:
            self._outputs.write("TensorBoard", self._tensorboard.close)
        self._outputs.close()

    def _append(self, record: JsonRecord, name: str) -> None:
        """Add a record to a file, behind what a write that failed may have left of a line."""
        folder = self._records_folder
        if folder is None:
            return
        if self._outputs.failures[name]:
            self._outputs.write(name, partial(end_lines, folder / name))
        self._outputs.write(name, partial(append_record, folder, record, name))

    def _first_of_run(self, start_iteration: int) -> LogRecord | None:
        """Return the first record of a run that goes on; None where it has just begun."""
        if not (start_iteration and self._records_folder):
            return None
        path = self._records_folder / METRICS_FILE
        try:
            with path.open(encoding="utf-8") as file:
                first = LogRecord.from_json(file.readline())
        except (ValueError, OSError) as error:
            # A figure is not worth a run.
            logger.warning("%s has no first record; figures begin now: %s", path, error)
            return None
        return first if first.iteration <= start_iteration else None

    def _keep_settings(self, config: Config) -> str:
        start = f"preset {config.run.preset}, AIA preset {config.aia.aia_preset}"
        if self._records_folder is None:
            return f"{start}; kept nowhere (neither --save nor --tensorboard-dir is set)"
        path = self._records_folder / CONFIG_FILE
        path.write_text(dump(config))
        return f"{start}; all of them: {path}"

    def _draw(self, record: LogRecord) -> None:
        from megatron_aia.analysis.plots import plot_intensity

        assert self._first is not None and self._tensorboard is not None
        if not record.intensity:  # AIA is off
            return
        figure = plot_intensity(
            before=self._first.intensity,
            after=record.intensity,
            target=record.target,
            title=f"iterations {self._first.iteration} and {record.iteration}",
            spread=record.intensity_std,
        )
        self._tensorboard.figure("intensity", figure, record.iteration)


def open_reporter(config: Config, start_iteration: int, parallel: Parallel) -> Reporter | None:
    """Open what rank 0 writes to; None on the other ranks.

    Raises:
        ValueError: on every rank, if it cannot be written.
    """
    reporter: Reporter | None = None
    error: Exception | None = None
    if dist.get_rank() == 0:
        try:
            reporter = Reporter(config, start_iteration)
        except OSError as caught:
            error = ValueError(f"--save or --tensorboard-dir cannot be written: {caught}")
    broadcast_failure(error, parallel.control)
    return reporter
