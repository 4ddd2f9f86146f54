"""Run a converter in this process, as its command line would."""

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).parents[2] / "tools"

Result = tuple[int, str, str]


def run_tool(name: str, *arguments: object) -> Result:
    """Return exit code, standard output and standard error."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec and spec.loader
    tool: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = tool.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def import_hf(source: Path, target: Path, *flags: str) -> Result:
    return run_tool("convert_hf_to_megatron", "--hf-path", source, "--save", target, *flags)


def export_hf(source: Path, target: Path, layout: str, *flags: object) -> Result:
    arguments = ("--load", source, "--save", target, "--hf-layout", layout, *flags)
    return run_tool("convert_megatron_to_hf", *arguments)
