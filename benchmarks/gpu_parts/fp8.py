"""A step with FP8 products, and with FP8 attention, beside bf16 on the same GPU."""

import statistics
from argparse import Namespace
from importlib.util import find_spec
from typing import Any

from attention_sides.measure import seconds
from step_cost import FP8, Side, one_process

from megatron_aia.runtime.device import compute_capability, has_cuda

OPTIONS = Namespace(layers=2, hidden_size=4096, length=8192, shape="generation", heads_a_group=4)


def run() -> dict[str, Any]:
    if not has_cuda() or compute_capability() < (8, 9):
        return {"ok": None, "why": "no GPU with FP8"}
    if find_spec("transformer_engine") is None:
        return {"ok": None, "why": "Transformer Engine is not installed"}
    parallel = one_process(OPTIONS)
    lines, table = [], {}
    for precision in FP8:
        steps = Side(OPTIONS, precision, parallel).steps(64)
        for name, step in steps.items():
            step()
            times = [seconds(step) for _ in range(8)]
            table[f"{precision}: {name}"] = statistics.median(times)
            lines.append(f"{precision}: {name}: {1e3 * statistics.median(times):.1f} ms")
    return {"ok": "measured", "lines": lines, "seconds": table}
