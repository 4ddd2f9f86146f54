"""Packages that only some users need, imported where they are used."""

import importlib
from typing import Any


def import_optional(module: str, extra: str) -> Any:
    """Import ``module``, which the pip extra ``extra`` of this package installs.

    Raises:
        ValueError: the module is not installed; the message holds the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"this needs the package {module.split('.')[0]}, which cannot be imported ({error}); "
            f"run: pip install 'megatron_aia[{extra}]'"
        ) from error
