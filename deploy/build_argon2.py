"""Compile argon2-cffi-bindings for a given processor and put it in the wheel's place if it is faster.

The wheel holds SSE2 code only, for every x86-64 ever made. Hashing is what callers wait for longest, and the same
source compiled for AVX2 or AVX-512 needs half the time or less. Whatever fails here leaves the wheel as it was.
"""

import argparse
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "argon2-cffi-bindings"

# Milliseconds of processor time for one hash at the service's cost; the best of eight, since others share the machine.
TIMING = """
import time
from argon2 import PasswordHasher
hasher = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)
kept = hasher.hash("argon2")
def once():
    begin = time.process_time()
    assert hasher.verify(kept, "argon2")
    return time.process_time() - begin
print(min(once() for _ in range(8)) * 1000)
"""


class Unchanged(Exception):
    """The installed package stays; the message says why, `log` what the compiler said."""

    def __init__(self, why: str, log: str = "") -> None:
        super().__init__(why)
        self.log = log


def main() -> int:
    """Build, compare, install; exit 1 only with --required, which the image's build sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--march", default="native", help="the compiler's -march (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment to change")
    parser.add_argument("--required", action="store_true", help="fail where the compiled code does not go in")
    options = parser.parse_args()
    try:
        print(f"argon2: {replace_wheel(options.python, options.march)}")
    except Unchanged as reason:
        print(f"argon2: {reason}")
        if options.required:
            print(reason.log, file=sys.stderr)
        elif reason.log:
            kept = Path(options.python).parent.parent / "build_argon2.log"
            kept.write_text(reason.log, encoding="utf-8")
            print(f"argon2: the compiler's words are in {kept}")
        return int(options.required)
    return 0


def replace_wheel(python: str, march: str) -> str:
    """Install the compiled package into the environment of `python`; says how much it gained."""
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        raise Unchanged("the wheel stays; argon2 has code for wider registers on x86-64 alone")
    if not (shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")):
        raise Unchanged("no C compiler found, so the wheel stays; hashing would be two to three times as fast with one")
    wheel = f"from importlib.metadata import distribution; print(distribution({PACKAGE!r}).read_text('WHEEL'))"
    if "-linux_" in output(python, wheel):
        return "compiled here before"  # a published wheel is tagged manylinux or musllinux

    with tempfile.TemporaryDirectory() as folder:
        pin = Path(folder, "pin.txt")
        pin.write_text(locked(PACKAGE), encoding="utf-8")
        trial = Path(folder, "trial")
        install(pin, march, "--python", python, "--target", str(trial))
        before, after = milliseconds(python), milliseconds(python, path=trial)
        if after > before * 0.95:
            raise Unchanged(f"code compiled for {march} is no faster ({after:.1f} ms a hash) than what is installed")
        install(pin, march, "--python", python, "--reinstall")  # from uv's cache: nothing is compiled twice
    return f"compiled for {march}: {after:.1f} ms a hash, {before:.1f} ms before"


def locked(package: str) -> str:
    """The lock's lines of one package: its version and hashes."""
    lock = (ROOT / "requirements/run.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{package}==[^\\\n]*(?:\\\n[^\\\n]*)+", lock, re.MULTILINE)
    if found is None:
        raise Unchanged(f"requirements/run.txt does not name {package}")
    return found[0] + "\n"


def install(pin: Path, march: str, *where: str) -> None:
    """Build from the locked sdist with the locked build tools; the flags are part of uv's cache key."""
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--no-binary", PACKAGE, "--build-constraints", str(ROOT / "requirements/build.txt")]
    command += ["--config-setting", f"cmake.define.CMAKE_C_FLAGS=-march={march}", "--requirements", str(pin), *where]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unchanged("compiling failed, so the wheel stays; hashing is slower, all else is the same", done.stderr)


def milliseconds(python: str, path: Path | None = None) -> float:
    """Processor time of a hash, measured in a process of its own: code for another processor would end this one."""
    search = "" if path is None else f"import sys; sys.path.insert(0, {str(path)!r})\n"
    return float(output(python, search + TIMING))


def output(python: str, code: str) -> str:
    """What `code` prints in the environment to change."""
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unchanged(f"the wheel stays; a trial ended with exit code {done.returncode}", done.stderr)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
