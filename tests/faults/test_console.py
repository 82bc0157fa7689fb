"""The console in processes of its own: the first admin's way in, and a paged operator's story in a browser."""

import asyncio
import io
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image
from playwright.async_api import Locator, Page, async_playwright, expect

from tests.console import Browser, browser
from tests.faults.house import ADMIN_EMAIL, ADMIN_PASSWORD, House, Run
from tests.faults.ledger import Ledger, emails
from tests.faults.test_dead_letters import QUICK, Ward, letters_stand, mail_server
from tests.gateway import database, new_email
from tests.program import clean_environment, command, eventually, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip
expect.set_options(timeout=20_000)  # a machine that others share
PICTURES = os.environ.get("CONSOLE_PICTURES")
"""A folder for pictures of the pages that the story comes by (`make pictures`)."""


def at_house(house: House) -> dict[str, str]:
    return {"USER_SERVICE_CONSOLE_PORT": "0", "USER_SERVICE_CONSOLE_NATS_URL": house.at.nats_urls["operator"]}


@asynccontextmanager
async def nobody_is_admin(house: House) -> AsyncIterator[None]:
    """The admins of the house are suspended while the block lasts."""
    async with database(house.ready) as rows:
        ids = await rows.fetch("SELECT id FROM users WHERE role = 'admin' AND status = 'active'")
        await rows.execute("UPDATE users SET status = 'suspended' WHERE id = ANY($1)", [row["id"] for row in ids])
        try:
            yield
        finally:
            await rows.execute("UPDATE users SET status = 'active' WHERE id = ANY($1)", [row["id"] for row in ids])


async def test_whoever_has_the_link_becomes_the_first_admin_and_nobody_after_them(house: House) -> None:
    email, password = new_email(), "Difference-Engine-1832"
    async with nobody_is_admin(house), house.run("requests", "relay"):
        out = house.base / "console.out"
        with out.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "handlers.start", "console"),
                stdout=file, stderr=file, env=clean_environment() | house.env | at_house(house),
            )  # fmt: skip
        try:
            await until(lambda: "/first?token=" in out.read_text(), within_s=20, what="the link")
            link = re.findall(r"http\S+", out.read_text())[-1]
            base = link.partition("/first")[0]
            async with browser(base) as first, browser(base) as second:
                page, other = await first.get(link), await second.get(link)
                assert page.heading == "The first admin"
                names = {"email": email, "firstName": "Grace", "lastName": "Hopper"}
                weak = await first.send(page, "/first", **names, password="short")
                assert (weak.status, "That cannot be" in weak.said) == (400, True)
                page = await first.send(weak, "/first", **names, password=password)
                assert page.heading == "Overview", page.text
                late = await second.send(other, "/first", **names | {"email": new_email()}, password=password)
                assert "used already" in late.said
                audit = await first.get("/audit?action=admin_created")
                assert "operator:" in audit.text
            assert password not in out.read_text()
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 20) == 0
        finally:
            if process.returncode is None:
                process.kill()
        async with database(house.ready) as rows:
            await rows.execute("UPDATE users SET role = 'user' WHERE email = $1", email)


async def test_the_overview_says_what_is_away_when_no_operation_can_be_answered(house: House) -> None:
    async with (
        house.without_mail(),
        house.run("requests", "console", **at_house(house)) as run,
        browser(console_of(run)) as operator,
    ):
        assert (await operator.sign_in(ADMIN_EMAIL, ADMIN_PASSWORD)).heading == "Overview"

        async def mail_is_missed() -> bool:
            return '<li class="tile degraded"><b>smtp</b>' in (await operator.get("/overview/now")).text

        await eventually(mail_is_missed, within_s=10, what="the overview to say that the mail server is away")

        async def says(word: str) -> bool:
            return f'<span class="state {word}' in (await operator.get("/overview/now")).text

        async with house.without("postgres"):
            await eventually(lambda: says("bad"), within_s=20, what="the overview to say that PostgreSQL is away")
            assert (await operator.get("/")).heading == "Overview"
            assert "They cannot be read now" in (await operator.get("/overview/letters")).text
            page = await operator.get("/users")
            assert (page.status, page.heading) == (503, "No answer")
        await eventually(lambda: is_there(operator, "/users"), within_s=20, what="users to be read again")


async def is_there(operator: Browser, path: str) -> bool:
    return (await operator.get(path)).status == 200


def console_of(run: Run) -> str:
    return str(run.lines("console")[0]["url"])


async def test_a_console_without_an_operators_address_does_not_start(house: House) -> None:
    code, _, err = await house.command("run", "requests", "console")
    assert (code, err.partition(":")[0]) == (1, "USER_SERVICE_CONSOLE_NATS_URL")
    code, _, err = await command("run", "console", "--workers", "2", env=house.env | at_house(house))
    assert (code, "one process" in err) == (2, True)


@asynccontextmanager
async def chromium() -> AsyncIterator[Page]:
    """A page of a browser; it fails the test when a page of ours breaks its own policy or throws."""
    complaints: list[str] = []
    async with async_playwright() as driver:
        launched = await driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        context = await launched.new_context(viewport={"width": 1280, "height": 800})
        page = await context.new_page()
        page.on("console", lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page
        await launched.close()
    assert not complaints, complaints


async def picture(page: Page, name: str, *, whole: bool = False) -> None:
    """Keep what is seen, in few colours: it goes into the documents."""
    if PICTURES:
        await page.locator("h1").click()  # nothing is focused
        seen = await page.screenshot(full_page=whole)
        few = Image.open(io.BytesIO(seen)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        few.save(Path(PICTURES) / f"console-{name}.png", optimize=True)


async def require_a_phone_shows_it(page: Page) -> None:
    """Nothing stands beyond the edge of a small screen; tables scroll by themselves."""
    size = page.viewport_size
    assert size is not None
    await page.set_viewport_size({"width": 360, "height": 740})

    async def fits() -> bool:
        return bool(await page.evaluate("document.documentElement.scrollWidth <= 360"))

    await eventually(fits, within_s=5, what=f"{page.url} to fit")  # charts are drawn anew
    await page.set_viewport_size(size)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here: apt-get install chromium")
async def test_a_paged_operator_has_every_mail_sent_by_the_browser(house: House) -> None:
    wanted, ledger, ward, began = emails(20), Ledger(), Ward(), datetime.now(UTC)
    async with mail_server(ward) as server:
        run = house.run(*ALL, SMTP_URL=server.url, **QUICK, **at_house(house))
        async with run, house.gateway() as client, chromium() as page:
            await ledger.register(client, wanted, at_once=5)
            await letters_stand(house, ledger, 20)
            base = console_of(run)
            letters = f"{base}/letters?type=EmailVerificationRequested&from={began:%Y-%m-%dT%H:%M:%S}"
            await sign_in(page, letters)
            await look_at_everything(page)
            await page.goto(letters)
            await look_at_the_letters(page)
            ward.healed = True
            await replay(page)
            await look_who_did_it(page, base)
    assert sorted(address for to, _ in server.received for address in to if address in wanted) == sorted(wanted)


ALL = ("requests", "relay", "email", "audit", "cache", "jobs", "console")


async def sign_in(page: Page, url: str) -> None:
    """By keyboard alone."""
    await page.goto(url)
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await page.keyboard.type(ADMIN_EMAIL)
    await page.keyboard.press("Tab")
    await page.keyboard.type(ADMIN_PASSWORD)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Dead letters")).to_be_visible()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()


def the_cause(page: Page) -> Locator:
    """Its row: other mails than those of the story may have been refused meanwhile."""
    return page.get_by_role("row").filter(has_text="the mailbox").filter(has_text="EmailVerificationRequested")


async def look_at_everything(page: Page) -> None:
    """The overview: health, groups, charts, and that letters wait."""
    await page.get_by_role("link", name="Overview").click()
    await expect(page.locator("#charts canvas")).to_have_count(3, timeout=20_000)
    await expect(page.locator("#now")).to_contain_text("email")
    await expect(the_cause(page)).to_contain_text("20")
    if PICTURES:
        await page.wait_for_timeout(15_000)  # for lines worth a picture
    await picture(page, "overview", whole=True)
    await require_a_phone_shows_it(page)


async def look_at_the_letters(page: Page) -> None:
    """By cause, as a list, one whole."""
    await expect(the_cause(page)).to_contain_text("20")
    await picture(page, "causes")
    await require_a_phone_shows_it(page)
    await page.get_by_role("link", name="20", exact=True).first.click()
    await expect(page.get_by_role("checkbox")).to_have_count(20)
    await picture(page, "letters")
    await require_a_phone_shows_it(page)
    await page.locator("tbody a[href^='/letters/']").first.click()
    await expect(page.get_by_role("heading", name="Attempts")).to_be_visible()
    await expect(page.locator("details")).to_have_count(2)
    await expect(page.locator("pre").filter(has_text='"aggregateType"')).to_be_visible()
    await page.locator("details[open] summary").click()  # a trace names folders of this machine
    await picture(page, "letter")
    await require_a_phone_shows_it(page)
    await page.go_back()


async def replay(page: Page) -> None:
    """The dry run, then the replay itself, watched to its end without a reload."""
    await page.get_by_role("link", name="Replay all that match…").click()
    await expect(page.get_by_text("20 letters would be replayed")).to_be_visible()
    await page.get_by_label("Letters a second").fill("200")
    await picture(page, "replay")
    await require_a_phone_shows_it(page)
    await page.get_by_role("button", name="Replay 20 letters").click()
    await expect(page.get_by_role("heading", name="Replay of 20 letters")).to_be_visible()
    await expect(page.locator("#now .state")).to_have_text("done", timeout=30_000)
    await expect(page.locator("#now")).to_contain_text("20")
    await picture(page, "job")
    await require_a_phone_shows_it(page)


async def look_who_did_it(page: Page, base: str) -> None:
    """The audit log, and the account that it names."""
    await page.goto(f"{base}/audit?action=dead_letters_replayed")
    row = page.locator("tbody tr").first
    await expect(row).to_contain_text("dead_letters_replayed")
    await picture(page, "audit")
    await require_a_phone_shows_it(page)
    await row.locator("a[href^='/users/']").first.click()
    await expect(page.get_by_text(ADMIN_EMAIL).last).to_be_visible()
    await picture(page, "user")
    await require_a_phone_shows_it(page)
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
