"""Which versions of PyTorch and megatron-core a run accepts, asked before either is imported.

``setup.py`` asks pip for the same; ``docs/versions.md`` says which were run with which.
"""

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

SUPPORTED = {
    "torch": ">=2.11",
    # 0.17.0 writes checkpoints by nvidia-resiliency-ext where that is installed.
    "megatron-core": ">=0.16.1,!=0.17.0,<0.20",
}
_IMPORTS_TRITON = ">=0.18"
_NEEDS_COMMON_FILE = "<0.19"
COMMON_FILE = "common.pt"
"""What of a checkpoint is no tensor; 0.19 puts it among the tensors, and reads either."""

_NUMBERS = re.compile(r"^(MAJOR|MINOR|PATCH) = (\d+)", re.MULTILINE)


def check_versions() -> None:
    """Refuse versions that this program was not made for; ``SUPPORTED`` has the ranges.

    Raises:
        ValueError: a version lies outside, or megatron-core lacks a package that it imports.
    """
    for name, found in (("torch", _torch_version()), ("megatron-core", megatron_core_version())):
        if found and not _fits(found, SUPPORTED[name]):
            raise ValueError(
                f"{name} {found} is installed, and this program needs {name}{SUPPORTED[name]}; "
                f"run: pip install '{name}{SUPPORTED[name]}'"
            )
    found = megatron_core_version()
    if found and _fits(found, _IMPORTS_TRITON) and find_spec("triton") is None:
        raise ValueError(
            f"megatron-core {found} imports triton, which is not installed; run: pip install triton"
        )


def megatron_core_version() -> str:
    """Return the version of the megatron-core that an import would find; "" if there is none.

    Read from its files: a clone of Megatron-LM on PYTHONPATH has no package metadata, and inside a
    git checkout the version of its own ends with a commit.
    """
    try:
        spec = find_spec("megatron.core")
    except ModuleNotFoundError:  # of the package around it
        return ""
    if spec is None or spec.origin is None:
        return ""
    text = Path(spec.origin).with_name("package_info.py").read_text()
    numbers = dict(_NUMBERS.findall(text))
    return ".".join(numbers[part] for part in ("MAJOR", "MINOR", "PATCH"))


def needs_common_file(megatron_core: str) -> bool:
    """Return whether a version of megatron-core writes ``COMMON_FILE`` and cannot load without."""
    return _fits(megatron_core, _NEEDS_COMMON_FILE)


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def _fits(found: str, wanted: str) -> bool:
    # Not at the top: a program without its packages is to say so in one line.
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    # NVIDIA's containers have versions such as 2.11.0a0+1a2b3c.
    return SpecifierSet(wanted).contains(Version(found).base_version)
