"""The files in which workers keep their figures for the page of them all."""

import struct
from pathlib import Path

import structlog
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import mark_process_dead

log = structlog.get_logger()

_BLOCK = 64 * 1024
_PER_VALUE = 32
"""Bytes of an entry beside its key, at most."""


def fold_in(directory: Path, pid: int) -> None:
    """A worker has ended: what it counted goes on counting, in one file for all that have ended, and its own are
    removed. One that ends again and again would leave some each time, and each reading of the page goes through all.
    """
    mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]
    for file in directory.glob(f"*_{pid}.db"):
        try:
            _add(file, to=file.with_name(file.name.replace(f"_{pid}.db", "_ended.db")))
        except (OSError, ValueError, struct.error) as error:  # no room, or it died while it made the file
            log.error("figures of a worker that ended are lost", file=file.name, error=type(error).__name__)
        finally:
            file.unlink(missing_ok=True)


def _add(file: Path, *, to: Path) -> None:
    sums = _read(to) if to.exists() else {}
    for key, value in _read(file).items():
        sums[key] = sums.get(key, 0.0) + value
    anew = to.with_suffix(".new")
    # Its bytes are there before it is mapped: written into a map, a full disk would end the whole process.
    needed = sum(len(key.encode()) + _PER_VALUE for key in sums) + _BLOCK
    with anew.open("wb") as made:
        made.write(bytes(needed // _BLOCK * _BLOCK + _BLOCK))
    kept = MmapedDict(str(anew))  # type: ignore[no-untyped-call]
    for key, value in sums.items():
        kept.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    kept.close()  # type: ignore[no-untyped-call]
    anew.replace(to)


def _read(file: Path) -> dict[str, float]:
    return {key: value for key, value, _, _ in MmapedDict.read_all_values_from_file(str(file))}  # type: ignore[no-untyped-call]
