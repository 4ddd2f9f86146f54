"""Start ranks as forks of this process: modules are imported once, no port is needed."""

import datetime
import gc
import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch.distributed as dist

from megatron_aia.runtime.mcore import install


def spawn(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 300.0) -> Any:
    """Run ``function(*args)`` on ``world_size`` gloo ranks and return what rank 0 returned.

    Raises:
        AssertionError: a rank failed (its traceback is shown) or did not end in time.
    """
    install()
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank_main, args=(function, args, rank, world_size, folder, sender)
            )
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        try:
            return _collect(pipes, timeout)
        finally:
            for process in processes:
                process.join(timeout=10)
                if process.is_alive():
                    process.kill()
                    process.join()


def _collect(pipes: list[Connection], timeout: float) -> Any:
    deadline = datetime.datetime.now() + datetime.timedelta(seconds=timeout)
    first_result = None
    waiting = dict(enumerate(pipes))
    while waiting:
        remaining = (deadline - datetime.datetime.now()).total_seconds()
        ready = multiprocessing.connection.wait(list(waiting.values()), timeout=max(remaining, 0))
        assert ready, f"ranks {sorted(waiting)} did not end within {timeout} s"
        for rank, pipe in list(waiting.items()):
            if pipe in ready:
                try:
                    failure, result = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    failure, result = "the process died", None
                assert failure is None, f"rank {rank} failed:\n{failure}"
                first_result = result if rank == 0 else first_result
                del waiting[rank]
    return first_result


def _rank_main(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    world_size: int,
    folder: str,
    sender: Connection,
) -> None:
    os.environ.pop("RANK", None)
    # What the parent made lives on: a collection that looks at it takes half the time of a layout.
    gc.freeze()
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=120),
        )
        result = function(*args)
        _send(sender, (None, result if rank == 0 else None))
    except BaseException:
        _send(sender, (traceback.format_exc(), None))
    finally:
        sender.close()
        # Without the clean-up of the interpreter: threads of the parent do not exist here.
        os._exit(0)


def _send(sender: Connection, message: Any) -> None:
    # Plain pickle copies tensors; the pipe's own would share memory that ends with this process.
    sender.send_bytes(pickle.dumps(message))
