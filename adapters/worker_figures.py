"""The files in which workers keep their figures for the page of them all."""

from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import mark_process_dead

_ENDED = "ended"


def fold_in(directory: Path, pid: int) -> None:
    """A worker has ended: what it counted goes on counting, in one file for all that have ended, and its own are
    removed. One that ends again and again would leave some each time, and each reading of the page goes through all.
    """
    mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]
    for file in directory.glob(f"*_{pid}.db"):
        kept = MmapedDict(str(file.with_name(file.name.replace(f"_{pid}.db", f"_{_ENDED}.db"))))  # type: ignore[no-untyped-call]
        for key, value, timestamp, _ in MmapedDict.read_all_values_from_file(str(file)):  # type: ignore[no-untyped-call]
            before, _ = kept.read_value(key)  # type: ignore[no-untyped-call]
            kept.write_value(key, before + value, timestamp)  # type: ignore[no-untyped-call]
        kept.close()  # type: ignore[no-untyped-call]
        file.unlink()
