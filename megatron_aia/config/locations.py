"""Where data may be: a path, or a URL of a kind that only hands out bytes."""

REMOTE_SCHEMES = ("s3", "gs", "http", "https", "memory")


def is_url(location: str) -> bool:
    """Tell whether ``location`` is a URL, of whatever kind, rather than a path."""
    return "://" in location or "::" in location or location.startswith("pipe:")


def check_location(location: str) -> None:
    """Check that a URL is of a kind that is read. Some kinds elsewhere run programs.

    Raises:
        ValueError: it is not.
    """
    scheme = location.partition(":")[0]
    if is_url(location) and ("::" in location or scheme not in REMOTE_SCHEMES):
        kinds = ", ".join(f"{scheme}://" for scheme in REMOTE_SCHEMES)
        raise ValueError(f"{location}: unsupported URL scheme; use a folder, or one of {kinds}")
