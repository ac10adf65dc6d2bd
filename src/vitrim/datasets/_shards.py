"""Tar shards: names with numbers in braces, samples one after the other, and where each lies."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from vitrim.datasets.base import DataError

Members = dict[str, bytes]


def expand(pattern: str) -> list[str]:
    """Names for ``train-{0000..0146}.tar``, with leading zeros as written; several braces are multiplied out."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    names = [f"{pattern[: found.start()]}{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    return [name + rest for name in names for rest in expand(pattern[found.end() :])]


def split_name(member: str) -> tuple[str, str]:
    """Key and ending of a member: the name is cut at its first dot, folders belong to the key."""
    path = PurePosixPath(member)
    stem, _, ending = path.name.partition(".")
    return (path.parent / stem).as_posix(), ending.lower()


def samples(address: str, wanted: Callable[[str], bool], skip: int = 0) -> Generator[tuple[str, Members]]:
    """Key and members of the samples of a shard, read in one direction.

    Args:
        address: path or address of the shard.
        wanted: says by its ending whether a member is needed; others are passed over.
        skip: samples at the beginning whose content is not read.

    Raises:
        DataError: when the shard cannot be opened, or is cut off.
    """
    key, members, seen = None, Members(), 0
    try:
        with _opened(address) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                name, ending = split_name(member.name)
                if not member.isfile() or not ending:
                    continue
                if name != key:
                    if key is not None and seen > skip:
                        yield key, members
                    key, members, seen = name, Members(), seen + 1
                content = tar.extractfile(member) if seen > skip and wanted(ending) else None
                if content is not None:
                    members[ending] = content.read()
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"wds: shard '{address}' cannot be read to its end ({error}); obtain it again") from error
    if key is not None and seen > skip:
        yield key, members


def positions(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Where members lie in a shard on this machine: ``(offset, size)`` in bytes by key and ending.

    Raises:
        DataError: when it is no tar file, or is cut off.
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, ending = split_name(member.name)
                if member.isfile() and ending:
                    if member.offset_data + member.size > size:
                        raise DataError(f"wds: shard '{path}' is cut off at '{member.name}'; obtain it again")
                    found.setdefault(key, {})[ending] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"wds: shard '{path}' cannot be read to its end ({error}); obtain it again") from error
    return found


def fetch(address: str) -> bytes | None:
    """Content of a small file at an address, or None when there is none."""
    try:
        with _opened(address) as file:
            return file.read() or None
    except OSError:
        return None


@contextmanager
def _opened(address: str) -> Generator[IO[bytes]]:
    if "://" not in address and not address.startswith("pipe:"):
        with Path(address).open("rb") as file:
            yield file
        return
    try:
        from webdataset.gopen import gopen
    except ImportError as error:
        raise DataError("wds at addresses needs the library webdataset: pip install vitrim[train]") from error
    opened: Any = gopen(address)
    with opened:
        yield opened
