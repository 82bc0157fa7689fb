"""The link that a `dev` prints: it lets its admin in once, who sets a second factor up where one is asked for."""

import re
from pathlib import Path

import pyotp

from tests.console import browser
from tests.program import Dev


async def test_the_link_lets_the_admin_in_once_and_a_second_factor_is_set_up_in_the_browser(tmp_path: Path) -> None:
    async with Dev(tmp_path / "data", USER_SERVICE_ADMIN_SECOND_FACTOR="true") as dev:
        link = re.search(r"http\S+/first\?token=\S+", dev.log)
        assert link is not None
        assert link[0] not in dev.ready_file.read_text()
        async with browser(dev.ready["consoleUrl"]) as admin, browser(dev.ready["consoleUrl"]) as stranger:
            assert (await stranger.get("/first?token=made-up")).status == 403
            assert (await stranger.get("/first")).heading == "Sign in", "the link alone opens that page"
            await admin.get(link[0])  # to look at it uses nothing up
            welcome = await admin.get(link[0])
            assert (welcome.path, welcome.heading) == ("/first", "Welcome"), "the token is out of the address"
            assert link[0].partition("token=")[2] not in welcome.text
            page = await admin.send(welcome, "/first")
            assert page.heading == "A second factor is needed"
            assert (await stranger.get(link[0])).status == 403
            for path in ("/", "/overview/history", "/overview/now", "/users", "/inbox"):
                assert (await admin.get(path)).heading == "A second factor is needed", path

            wrong = await admin.send(page, "/second-factor", password="Wrong-Password-1")
            assert wrong.status == 401
            shown = await admin.send(page, "/second-factor", password=dev.ready["admin"]["password"])
            secret = re.search(r"Type this into the app: <code>(\w+)</code>", shown.text)
            assert secret is not None
            assert "img-src 'self' data:;" in shown.headers["content-security-policy"]
            codes = await admin.send(shown, "/second-factor", code=pyotp.TOTP(secret[1]).now())
            assert len(re.findall(r"<li><code>[0-9A-F]{8}</code>", codes.text)) == 10
            assert (await admin.get("/")).heading == "Overview"
            assert (await admin.get("/letters")).status == 200
