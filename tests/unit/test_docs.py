"""The pages of docs/ that follow from code are what that code says now; every link between pages leads somewhere."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from adapters.telemetry import Metrics, WorkerMetrics
from contracts.events import EVENTS
from contracts.wire import ErrorCode
from docs.generate import PAGES, WHEN
from handlers.events.mails import MAILS

ROOT = Path(__file__).parents[2]
WRITTEN = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_as_the_code_says(name: str) -> None:
    committed = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert committed == PAGES[name](), f"docs/{name} is out of date: run `make docs`"


def test_every_event_is_explained() -> None:
    assert WHEN.keys() == EVENTS.keys()


@pytest.mark.parametrize("name", WRITTEN)
def test_links_lead_to_files(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_test_that_the_page_on_security_names_is_there() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)`", page))
    assert named
    assert named <= {path.name for path in ROOT.glob("tests/*/test_*.py")}


@pytest.mark.parametrize("name", PAGES)
def test_links_inside_a_generated_page_have_a_heading(name: str) -> None:
    page = PAGES[name]()
    headings = {re.sub(r"[^\w-]", "", line.lstrip("# ").lower()) for line in page.splitlines() if line.startswith("#")}
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= headings


def test_every_metric_is_explained() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    supervisor = CollectorRegistry()
    WorkerMetrics(supervisor)
    for family in (*Metrics().registry.collect(), *supervisor.collect()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in page, name


def test_every_mail_is_explained_with_its_mailbox_and_its_pages() -> None:
    page = (
        (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").partition("\n## Mail\n")[2].partition("\n## ")[0]
    )
    found: set[tuple[str, str, str, tuple[str, ...]]] = set()
    events: list[str] = []
    for first, template, to, links in re.findall(r"^\| (.*?)\| `(\w+)` \| (.*?) \| (.*?)\|$", page, re.MULTILINE):
        events += re.findall(r"`([A-Z]\w+)`", first) or events[-1:]
        found.add((events[-1], template, to, tuple(re.findall(r"`(/[a-z-]+)`", links))))
    assert found == {
        (event, mail.template, mail.to.value, tuple(link.page for link in (mail.link, mail.second) if link))
        for event, mails in MAILS.items()
        for mail in mails
    }


def test_every_error_code_is_explained_with_its_number() -> None:
    page = (ROOT / "docs" / "gateway.md").read_text(encoding="utf-8")
    explained = {name: int(number) for name, number in re.findall(r"^\| `([A-Z_]+)` \| (\d{3}) \|", page, re.MULTILINE)}
    assert explained.items() <= {code.name: code.number for code in ErrorCode}.items()
    for code in ErrorCode:
        assert f"`{code.name}`" in page, code.name
