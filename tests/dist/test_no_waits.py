"""Between the first forward and the last backward of a step, the host never waits for a GPU."""

from pathlib import Path
from typing import Any

import pytest
from support.calls import Calls
from support.layouts import Layout, run_layout, tiny_config
from support.spawn import spawn
from support.tiny_data import write_shards

from megatron_aia.training import step

LAYOUTS = {
    "emu3": Layout(),
    "emu3, micro-batch 2, recompute": Layout({"recompute_granularity": "full"}, micro_batch_size=2),
    "janus_pro": Layout(family="janus_pro"),
}


def waits_of_a_step(data: Path, layout: Layout) -> tuple[int, list[str]]:
    """Return how many calls the schedule of a step made, and which of them wait."""
    found = []
    get_schedule = step.get_forward_backward_func

    def counted() -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            with Calls() as calls:
                result = get_schedule()(*arguments, **options)
            found.append(calls)
            return result

        return run

    step.get_forward_backward_func = counted
    run_layout(tiny_config(data, layout), num_steps=1)
    (calls,) = found
    return len(calls.names), calls.waits


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_call_of_a_step_waits(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    write_shards(tmp_path / "data", family=layout.family)
    count, waits = spawn(waits_of_a_step, 1, tmp_path / "data", layout)
    assert count > 1000
    assert waits == []
