"""Processes that build ranges of records; none of them knows what the others do."""

import multiprocessing
import signal
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType

from megatron_aia.building.options import BuildOptions
from megatron_aia.building.ranges import RangeBuilder, RangeJob, RecordsDone
from megatron_aia.building.work_folder import FinishedRange
from megatron_aia.models.image_tokenizers import load_image_tokenizer
from megatron_aia.runtime.worker import use_one_thread, worker_device
from megatron_aia.shards.image_tokenizer import ImageTokenizer


@dataclass(frozen=True)
class _Failure:
    """What ended a worker."""

    text: str
    is_user_error: bool


class Workers:
    """Worker processes, to be used in a ``with`` statement; they end with this process.

    Args:
        options: of the build.
    """

    def __init__(self, options: BuildOptions) -> None:
        self._options = options
        self._processes: dict[Connection, BaseProcess] = {}

    def __enter__(self) -> "Workers":
        # A server that imports everything once forks the workers, so they start at once; it holds
        # no threads and no CUDA context, which must not be forked.
        context = multiprocessing.get_context("forkserver")
        path = self._options.image_tokenizer
        has_network = path is not None and path.is_dir()
        context.set_forkserver_preload([__name__, "torch"] if has_network else [__name__])
        for number in range(self._options.num_workers):
            ours, theirs = context.Pipe()
            arguments = (theirs, number, self._options)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes[ours] = process
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for connection, process in self._processes.items():
            connection.close()
            process.terminate()
            process.join()

    def run(self, jobs: Iterable[RangeJob]) -> Iterator[RecordsDone | FinishedRange]:
        """Do all jobs, each by the next worker that is free; yield what they report.

        Raises:
            ValueError: a worker met a mistake of the user, or was killed.
        """
        waiting = iter(jobs)
        busy: list[Connection] = []
        for connection, job in zip(self._processes, waiting, strict=False):
            _send(connection, job)
            busy.append(connection)
        while busy:
            for ready in wait(busy):
                assert isinstance(ready, Connection)
                message = _receive(ready)
                yield message
                if isinstance(message, FinishedRange):
                    following = next(waiting, None)
                    if following is None:
                        busy.remove(ready)
                    else:
                        _send(ready, following)


def _send(connection: Connection, job: RangeJob) -> None:
    try:
        connection.send(job)
    except OSError:
        raise _killed() from None


def _receive(connection: Connection) -> RecordsDone | FinishedRange:
    try:
        message = connection.recv()
    except (EOFError, OSError):
        raise _killed() from None
    if isinstance(message, _Failure):
        raise (ValueError if message.is_user_error else RuntimeError)(message.text)
    return message


def _killed() -> ValueError:
    return ValueError(
        "a worker process was killed, perhaps for its memory; the same command goes on from here, "
        "with a smaller --num-workers if need be"
    )


def _serve(connection: Connection, number: int, options: BuildOptions) -> None:
    """Do jobs until the main process is gone, which every report finds out."""
    # Ctrl-C goes to all processes; the main one tells the others to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def load_tokenizer() -> ImageTokenizer | None:
        if options.image_tokenizer is None:
            return None
        device = worker_device(options.device, number)
        tokenizer = load_image_tokenizer(options.image_tokenizer, options.image_area, device)
        use_one_thread()
        return tokenizer

    builder = RangeBuilder(options, load_tokenizer)
    try:
        while True:
            for message in builder.run(connection.recv()):
                connection.send(message)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        is_user_error = isinstance(error, (ValueError, OSError))
        text = str(error) if is_user_error else traceback.format_exc()
        connection.send(_Failure(text, is_user_error))
