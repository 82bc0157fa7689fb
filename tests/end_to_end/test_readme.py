"""The story in the README: a stranger pastes it beside a running `make run`, and it comes out as it says."""

import asyncio
import re
import sys
import time
from pathlib import Path

from tests.program import Dev, clean_environment

README = Path(__file__).parents[2] / "README.md"


def _story() -> str:
    blocks = re.findall(r"^```sh\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


async def test_the_story_works_as_it_is_printed(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    began = time.perf_counter()
    async with Dev(tmp_path / ".dev"):
        process = await asyncio.create_subprocess_exec(
            "bash", "-euo", "pipefail", "-c", _story(),
            cwd=tmp_path, env=clean_environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout
        assert process.stderr
        said, verified_s = "", 0.0
        async with asyncio.timeout(90):
            async for line in process.stdout:
                said += line.decode()
                if '"emailVerified": true' in said and not verified_s:
                    verified_s = time.perf_counter() - began
            complaints = (await process.stderr.read()).decode()
            assert await process.wait() == 0, said + complaints
    print(f"\nfrom `make run` to a verified user: {verified_s:.1f} s")

    assert not complaints
    assert verified_s
    assert '"emailVerified": false' in said
    assert re.search(r"^Subject: Confirm your email address", said, re.MULTILINE)
    assert '"displayName": "The Countess"' in said
    events = re.findall(r"^\S+  \S+  v(\d)  (\w+)", said, re.MULTILINE)
    assert events == [
        ("1", "UserRegistered"), ("2", "EmailVerificationRequested"), ("3", "EmailVerified"), ("4", "UserLogin"),
        ("5", "ProfileUpdated"),
    ]  # fmt: skip
    for action in ("user_registered", "email_verified", "user_login", "profile_updated"):
        assert f'"action": "{action}"' in said
