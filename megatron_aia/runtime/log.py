"""Logging: one voice for the run, and quiet libraries."""

import logging
import os
import sys
import warnings


def configure_logging() -> logging.Logger:
    """Send this package's messages of rank 0 to standard output, and of other ranks nowhere."""
    logger = logging.getLogger("megatron_aia")
    logger.handlers.clear()
    logger.propagate = False
    if os.environ.get("RANK", "0") == "0":
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    else:
        logger.addHandler(logging.NullHandler())
        logger.setLevel(logging.ERROR)
    for noisy in ("megatron.core", "torch.distributed", "nv_one_logger"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    return logger


def quiet_imports() -> None:
    """Hide what imports say: packages that are optional, names torch will drop, no CUDA found."""
    warnings.filterwarnings("ignore", message=".*(Transformer Engine|Apex|apex).*")
    warnings.filterwarnings("ignore", module=r"megatron\.core.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
