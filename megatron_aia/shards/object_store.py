"""What is asked of fsspec, and what is asked again."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

from megatron_aia.config.locations import check_location

_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between attempts."""
_CONNECT_SECONDS = 30
_READ_SECONDS = 60
"""Longest silence of a server in the middle of an answer."""
_MAX_SMALL_FILE = 1 << 26
_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "gs": "gs"}
_CLIENT_LIBRARIES = ("aiohttp", "botocore", "aiobotocore", "s3fs", "gcsfs", "google")
_T = TypeVar("_T")
logger = logging.getLogger(__name__)


class FileSystem:
    """An object store."""

    lists_folders = True
    reads_one_version = False
    """``read`` sees by itself that an object has changed."""

    def __init__(self, scheme: str, **options: Any) -> None:
        self._fs = fsspec.filesystem(scheme, use_listings_cache=False, **options)

    def read(self, url: str, offset: int, size: int, version: str) -> bytes | None:
        """Read a range; return None if the object is of another version."""
        return bytes(self._fs.cat_file(url, start=offset, end=offset + size))

    def read_whole(self, url: str) -> bytes:
        """Read a file of some megabytes at most."""
        return bytes(self._fs.cat_file(url, start=0, end=_MAX_SMALL_FILE))

    def info(self, url: str) -> dict[str, Any]:
        """Return what the store tells of an object."""
        return dict(self._fs.info(url))

    def list(self, url: str) -> dict[str, dict[str, Any]]:
        """Return what the store tells of every object in a folder, by name."""
        entries = self._fs.ls(url, detail=True)
        return {e["name"].rpartition("/")[2]: e for e in entries if e["type"] == "file"}

    def version(self, info: dict[str, Any]) -> str:
        """Return the version in an answer of ``info`` or ``list``."""
        names = ("ETag", "etag", "generation", "LastModified", "mtime", "created")
        return next((str(info[name]) for name in names if info.get(name)), "")


class WebServer(FileSystem):
    """Files on a web server. Every answer is compared with the question before it is read."""

    lists_folders = False
    reads_one_version = True

    def __init__(self, scheme: str) -> None:
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS
        )
        super().__init__(
            scheme, client_kwargs={"timeout": timeout, "raise_for_status": _check_answer}
        )

    def read(self, url: str, offset: int, size: int, version: str) -> bytes | None:
        """See ``FileSystem``."""
        headers = {"Accept-Encoding": "identity"}
        if version:
            headers["If-Match" if version.startswith('"') else "If-Unmodified-Since"] = version
        try:
            return bytes(self._fs.cat_file(url, start=offset, end=offset + size, headers=headers))
        except _OtherVersion:
            return None

    def read_whole(self, url: str) -> bytes:
        """See ``FileSystem``."""
        return bytes(self._fs.cat_file(url))

    def version(self, info: dict[str, Any]) -> str:
        """See ``FileSystem``."""
        # Weak ETags begin with W/; they may stay when bytes change.
        tag = str(info.get("ETag", ""))
        return tag if tag.startswith('"') else str(info.get("Last-Modified", ""))


class _OtherVersion(Exception):
    """The object is not the one that was asked for."""


_CONDITIONS = (("If-Match", "ETag"), ("If-Unmodified-Since", "Last-Modified"))


async def _check_answer(response: Any) -> None:
    """Refuse an answer to another question, before its content is read.

    Raises:
        ValueError: a whole file comes where a part was asked for.
    """
    asked, told = response.request_info.headers, response.headers
    is_other = response.status == 412
    if response.status < 300:
        # A server may not know the condition, and still tell the version.
        for condition, version in _CONDITIONS:
            expected = asked.get(condition)
            is_other |= expected is not None and told.get(version, expected) != expected
    if is_other:
        response.close()
        raise _OtherVersion
    if "Range" in asked and response.status == 200:
        response.close()
        raise ValueError(
            f"{response.url}: the server sends whole files where parts are asked for; use one "
            "that answers range requests, or copy the folder"
        )


def open_store(url: str) -> FileSystem:
    """Return the store of a URL.

    Raises:
        ValueError: a package is missing, or the URL is of a kind that is not read.
    """
    check_location(url)
    scheme = url.partition(":")[0]
    try:
        return WebServer(scheme) if scheme in ("http", "https") else FileSystem(scheme)
    except ImportError as error:
        raise ValueError(
            f"{url}: needs a package that cannot be imported ({error}); run: "
            f"pip install 'megatron_aia[{_EXTRAS[scheme]}]'"
        ) from None


def with_retries(call: Callable[[], _T], url: str) -> _T:
    """Return what ``call`` returns, calling again after passing faults, with growing waits.

    Raises:
        OSError: the fault does not pass, or is not of the kind that does.
    """
    for wait in (*_WAITS, None):
        try:
            return call()
        except ValueError:
            raise
        except Exception as caught:
            error = _root(caught)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"{url}: is not there") from None
            if not _may_pass(error):
                raise OSError(f"{url}: {reason}") from None
            if wait is None:
                raise OSError(f"{url}: {reason}, in {len(_WAITS) + 1} attempts") from None
        logger.warning("%s: %s; next attempt in %g s", url, reason, wait)
        time.sleep(wait)
    raise AssertionError


def _root(error: Exception) -> BaseException:
    """Return what went wrong: on web servers, fsspec calls every failure FileNotFoundError."""
    cause = error.__cause__
    is_other = type(cause).__module__.startswith("aiohttp") and _status(cause) != 404
    return cause if isinstance(error, FileNotFoundError) and cause and is_other else error


def _may_pass(error: BaseException) -> bool:
    """Tell whether the same call may succeed later."""
    status = _status(error)
    if status is not None:
        return status >= 500 or status in (408, 425, 429)
    if isinstance(error, PermissionError | IsADirectoryError):
        return False
    return _is_of_client(error) or isinstance(error, OSError | EOFError | asyncio.TimeoutError)


def _status(error: object) -> int | None:
    """Return the HTTP status that an error of a client library carries."""
    values = (getattr(error, name, None) for name in ("status", "code"))
    return next((value for value in values if isinstance(value, int)), None)


def _is_of_client(error: object) -> bool:
    return type(error).__module__.partition(".")[0] in _CLIENT_LIBRARIES
