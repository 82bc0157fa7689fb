"""Where every command begins, before anything is loaded that takes a while."""

import os
import sys

ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in (
        ("hugetlb", 1),
        ("top_pad", 64 * 1024**2),
        ("mmap_threshold", 32 * 1024**2),
        ("trim_threshold", 256 * 1024**2),
    )
)


def main() -> None:
    """`user-service …`: a process that will hash passwords gets the memory for it first."""
    if sys.argv[1:2] in (["run"], ["dev"]):
        _keep_hashing_memory()
    from handlers.cli import main as command

    command()


def _keep_hashing_memory() -> None:
    """Begin this process again with an allocator that keeps the 19 MiB of a password hash, in huge pages, instead of
    giving them back and faulting them in again: it takes a tenth off a hash. glibc reads this at a start alone."""
    if "GLIBC_TUNABLES" in os.environ or not _runs_on_glibc():
        return
    os.environ["GLIBC_TUNABLES"] = ALLOCATOR
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - ourselves, with our own arguments


def _runs_on_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError):
        return False


if __name__ == "__main__":
    main()
