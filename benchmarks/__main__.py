"""`python -m benchmarks`: every operation under a closed loop of callers, on a `dev` of its own on this machine.

Callers, service and servers share the processors, so the figures compare builds on one machine, not machines.
"""

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nats
import uvloop
from nats.aio.client import Client

from benchmarks.load import Result, Scenario, Tree, measure
from benchmarks.scenarios import Cast, logout, register, resend_verification, verify_email
from handlers.start import ALLOCATOR
from tests.program import Dev

COST = (19456, 2, 1)
ENVIRONMENT = {
    "USER_SERVICE_ARGON2": "m={},t={},p={}".format(*COST),
    "USER_SERVICE_RATE_LIMITS": "off",
    "USER_SERVICE_LOG_LEVEL": "warning",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5, help="how long each operation is asked (default: 5)")
    parser.add_argument("--callers", type=int, default=32, help="how many ask at once, 1 to 60 (default: 32)")
    options = parser.parse_args()
    if not 1 <= options.callers <= 60:
        parser.error("--callers: 1 to 60; more logins at once than the hashing queue holds would be shed")
    uvloop.run(_measure_all(options.callers, options.seconds))


async def _measure_all(callers: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="user-service-bench-") as folder:
        began, load = time.perf_counter(), os.getloadavg()[0]
        async with Dev(Path(folder) / "data", **ENVIRONMENT) as dev:
            print(f"dev started in {time.perf_counter() - began:.1f} s", flush=True)
            client = await nats.connect(dev.ready["natsUrl"], allow_reconnect=False)
            try:
                await _measure_on(client, Tree(dev.pid), dev.ready, callers, seconds, load)
            finally:
                await client.close()


async def _measure_on(
    client: Client, tree: Tree, ready: Mapping[str, Any], callers: int, seconds: float, load: float
) -> None:
    print(
        f"{os.cpu_count()} processors, Python {platform.python_version()}, {callers} callers, {seconds:g} s each; "
        f"argon2id {ENVIRONMENT['USER_SERVICE_ARGON2']}; load before the start {load:.1f}\n",
        flush=True,
    )
    cast = Cast(client, tree, ready)
    await cast.gather(callers)
    print(HEADER, flush=True)

    async def run(scenario: Scenario) -> Result:
        result = await measure(client, tree, scenario, callers=callers, seconds=seconds)
        print(_row(result), flush=True)
        return result

    for scenario in (*cast.reads(), *cast.writes()):
        await run(scenario)
    await run(register())
    await run(verify_email(cast.mailed_tokens()))
    await run(resend_verification())
    await tree.settled()
    bare, kept = await bare_argon2_per_second(seconds), await bare_argon2_per_second(seconds, ALLOCATOR)
    login = await run(cast.login())
    await run(logout(await cast.open_sessions()))
    await run(cast.login_elsewhere())
    print(
        f"\nargon2id alone, {os.cpu_count()} threads: {bare:.0f} verifications a second, {kept:.0f} with the service's "
        f"allocator; login reaches {login.per_second / bare:.0%} and {login.per_second / kept:.0%} of that"
    )


async def bare_argon2_per_second(seconds: float, allocator: str = "") -> float:
    """The rate of the installed argon2 with a thread for each core, in a process that does nothing else."""
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.bare_argon2", str(seconds), *map(str, COST)),
        stdout=asyncio.subprocess.PIPE,
        env=env | ({"GLIBC_TUNABLES": allocator} if allocator else {}),
    )
    said, _ = await process.communicate()
    return float(said)


HEADER = (
    "| operation | requests | per second | p50 ms | p99 ms | service CPU ms | servers CPU ms | refused |\n"
    "|---|---:|---:|---:|---:|---:|---:|---|"
)


def _row(result: Result) -> str:
    if not result.requests:
        return f"| {result.name} | 0 | | | | | | |"
    refused = ", ".join(f"{count} {code}" for code, count in result.refused.items())
    return (
        f"| {result.name} | {result.requests} | {result.per_second:.0f} | {result.percentile(0.5):.1f} | "
        f"{result.percentile(0.99):.1f} | {result.service_ms:.2f} | {result.servers_ms:.2f} | {refused} |"
    )


if __name__ == "__main__":
    main()
