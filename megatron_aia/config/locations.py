"""Where data may be: a path, or a URL of a kind that only hands out bytes."""

import re

REMOTE_SCHEMES = ("s3", "gs", "http", "https", "memory")

_USER = re.compile(r"//[^/@]*@")
_QUERY = re.compile(r"[?#].*")


def is_url(location: str) -> bool:
    """Tell whether ``location`` is a URL, of whatever kind, rather than a path."""
    return "://" in location or "::" in location or location.startswith("pipe:")


def check_location(location: str) -> None:
    """Check that a URL is of a kind that is read. Some kinds elsewhere run programs.

    A URL with a password or a signature is refused: it would stand in logs and in checkpoints.

    Raises:
        ValueError: it is not.
    """
    shown = without_secrets(location)
    scheme = location.partition(":")[0]
    if is_url(location) and ("::" in location or scheme not in REMOTE_SCHEMES):
        kinds = ", ".join(f"{scheme}://" for scheme in REMOTE_SCHEMES)
        raise ValueError(f"{shown}: unsupported URL scheme; use a folder, or one of {kinds}")
    if shown != location:
        raise ValueError(
            f"{shown}: a URL may hold no name, password or query, which logs and checkpoints would "
            "keep; give credentials by the variables of its store, as AWS_SECRET_ACCESS_KEY"
        )


def without_secrets(location: str) -> str:
    """Return a URL with dots in the place of its user, password and query; a path stays."""
    if not is_url(location):
        return location
    return _USER.sub("//...@", _QUERY.sub("?...", location))
