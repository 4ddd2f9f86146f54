"""One step of a small Emu3 in bf16 here, and in fp32 on the CPU, from the same weights."""

import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from attention_sides.layer import SHAPES
from step_cost import make_batch, make_config

from megatron_aia.aia.profile import load_profile
from megatron_aia.models import load_model_spec
from megatron_aia.runtime.parallel import create_parallel, initialize_process_group
from megatron_aia.training.setup import build_models
from megatron_aia.training.step import run_step

OPTIONS = Namespace(layers=2, hidden_size=256, heads_a_group=2, length=2048, shape="packed")
LARGEST = {"loss": 1e-2, "intensity": 5e-3, "gradients": 5e-2}
"""Differences that bf16 explains: relative, absolute, relative in the Frobenius norm."""


def measure(bf16: bool) -> dict[str, Any]:
    """Return loss, intensities by layer and gradients of a step."""
    config = make_config(OPTIONS, "bf16")
    config = replace(config, training=replace(config.training, bf16=bf16))
    initialize_process_group(10)
    parallel = create_parallel(config.parallel, OPTIONS.layers, seed=1)
    spec = load_model_spec("emu3")
    models = build_models(config, spec, parallel)
    batch = make_batch(tuple(SHAPES[OPTIONS.shape](OPTIONS.length)), OPTIONS.length)
    targets = load_profile("paper").resolve(OPTIONS.layers, "stage")
    terms = spec.losses(config)
    output = run_step(models, spec, terms, config, parallel, [batch], targets)
    (aia,) = output.aia_contexts
    return {
        "loss": output.losses[0, 0].cpu(),
        "intensity": torch.stack([aia.intensity(i) for _, i in aia.measured]).cpu().double(),
        "gradients": {
            name: parameter.main_grad.detach().cpu().float()
            for name, parameter in models[0].named_parameters()
        },
    }


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cpu.pt"
        code = "import sys, torch; from gpu_parts.step import measure; "
        code += "torch.save(measure(bf16=False), sys.argv[1])"
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=True)
        exact = torch.load(path)
    found = measure(bf16=True)
    gradients = {
        name.removeprefix("module."): _relative(gradient, exact["gradients"][_plain(name, exact)])
        for name, gradient in found["gradients"].items()
    }
    worst = max(gradients, key=lambda name: gradients[name])
    errors = {
        "loss": float((found["loss"] - exact["loss"]).abs() / exact["loss"]),
        "intensity": float((found["intensity"] - exact["intensity"]).abs().max()),
        "gradients": gradients[worst],
    }
    lines = [f"{name}: {error:.1e} of {LARGEST[name]:.0e}" for name, error in errors.items()]
    lines[-1] += f" at {worst}"
    ok = all(error <= LARGEST[name] for name, error in errors.items())
    return {"ok": ok, "lines": lines, "errors": errors}


def _plain(name: str, exact: dict[str, Any]) -> str:
    """Return the name without the wrapper that bf16 adds."""
    return next(other for other in exact["gradients"] if name.endswith(_core(other)))


def _core(name: str) -> str:
    return name.removeprefix("module.")


def _relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm().clamp_min(1e-20))
