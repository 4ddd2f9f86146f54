"""Compile the fused kernels for a GPU that is not here, and print what each one spills.

    python -m support.compile_fused    (in tests/, without TRITON_INTERPRET)

Triton's wheel brings NVIDIA's assembler and disassembler, so no GPU and no CUDA are needed.
"""

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from megatron_aia.attention import fused, fused_kernels

TARGET = GPUTarget("cuda", 90, 32)

_DATA = {"Q", "K", "V", "Out", "GradOut", "GradQ", "GradK", "GradV"}
_INTEGERS = {"First", "Last", "Start", "Stop", "RowBits", "KeyBits"}
_FLOATS = {"scale", "score_scale"}


def compile_kernel(kernel: Any, constants: dict[str, Any]) -> dict[str, int]:
    """Compile one kernel for bfloat16; return what it takes of a multiprocessor."""
    names = kernel.arg_names
    options = {k: v for k, v in constants.items() if k not in names}
    fixed = {k: v for k, v in constants.items() if k in names}
    signature = {name: "constexpr" if name in fixed else _type(name) for name in names}
    # As the launcher would find: pointers, and strides of whole heads, are multiples of 16.
    aligned = [i for i, name in enumerate(names) if name[0].isupper() or "_" in name[1:3]]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned if names[i] not in fixed}
    source = ASTSource(
        kernel, signature, {(names.index(k),): v for k, v in fixed.items()}, attributes
    )
    compiled = triton.compile(source, target=TARGET, options=options)
    return {**_resources(compiled.asm["cubin"]), "shared": compiled.metadata.shared}


def _type(name: str) -> str:
    if name in _DATA:
        return "*bf16"
    if name in _INTEGERS:
        return "*i32"
    if name in _FLOATS:
        return "fp32"
    return "*fp32" if name[0].isupper() else "i32"


def _resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
        code = subprocess.run(
            [tool, "-sass", file.name], capture_output=True, text=True, check=True
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout)
    assert found, usage.stdout
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code.stdout)),
        "tensor core instructions": len(re.findall(r"\bHGMMA\b", code.stdout)),
    }


def compile_all(head_size: int) -> dict[str, dict[str, int]]:
    """Compile every kernel with the tiles it would run with."""
    every = fused.tiles(torch.bfloat16)
    kernels = {
        "forward": (fused_kernels.forward, every.forward),
        "backward_key_value": (fused_kernels.backward_key_value, every.key_value),
        "backward_query": (fused_kernels.backward_query, every.query),
    }
    return {
        name: compile_kernel(kernel, fused.constants(torch.bfloat16, head_size, tile))
        for name, (kernel, tile) in kernels.items()
    }


if __name__ == "__main__":
    sizes = [int(x) for x in os.environ.get("HEAD_SIZES", "64,128").split(",")]
    print(json.dumps({str(size): compile_all(size) for size in sizes}))
