"""The pages behind the mail's links, as a browser and a mail scanner see them."""

import asyncio
import re
import urllib.error
import urllib.parse
import urllib.request

from adapters.mail_sink import link_of
from tests.gateway import PASSWORD, Gateway, new_email


async def fetch(url: str, form: dict[str, str] | None = None) -> tuple[int, str, dict[str, str]]:
    """Status, page and headers."""
    data = None if form is None else urllib.parse.urlencode(form).encode()

    def ask() -> tuple[int, str, dict[str, str]]:
        try:
            with urllib.request.urlopen(url, data, timeout=10) as answer:
                return answer.status, answer.read().decode(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), dict(error.headers)

    return await asyncio.to_thread(ask)


async def test_the_link_shows_a_button_and_only_the_button_verifies(client: Gateway) -> None:
    email = new_email()
    await client.register(email)
    link = link_of(await client.mail_to(email, "verify-email"))
    assert link is not None

    await fetch(link)  # a scanner follows the link as often as it likes
    status, page, headers = await fetch(link)
    assert status == 200
    assert headers["referrer-policy"] == "no-referrer"
    assert (await client.call("auth.login", email=email, password=PASSWORD)).code == "EMAIL_NOT_VERIFIED"

    found = re.search(r'name="token" value="([^"]+)"', page)
    assert found is not None
    address = link.partition("?")[0]
    status, page, _ = await fetch(address, {"token": found[1]})
    assert (status, "verified" in page) == (200, True)
    assert (await client.call("auth.login", email=email, password=PASSWORD)).ok

    status, page, _ = await fetch(address, {"token": found[1]})
    assert (status, "not valid" in page) == (400, True)


async def test_the_second_link_of_a_verification_mail_removes_the_account_by_its_page(client: Gateway) -> None:
    email = new_email()
    await client.register(email)
    body = (await client.mail_to(email, "/not-me?")).get_body(("plain",))
    assert body is not None
    [link] = re.findall(r"http\S+/not-me\?token=\S+", body.get_content())

    status, page, _ = await fetch(link)
    found = re.search(r'name="token" value="([^"]+)"', page)
    assert status == 200
    assert found is not None
    assert (await client.call("auth.login", email=email, password=PASSWORD)).code == "EMAIL_NOT_VERIFIED"
    for wanted in (200, 400):
        status, page, _ = await fetch(link.partition("?")[0], {"token": found[1]})
        assert status == wanted, page
    assert (await client.call("auth.login", email=email, password=PASSWORD)).code == "INVALID_CREDENTIALS"


async def test_a_made_up_link_is_refused_and_never_printed_back(client: Gateway) -> None:
    address = f"{client.ready['httpUrl']}/verify-email"
    for form in ({"token": '"><script>alert(1)</script>'}, {"token": ""}, {}, {"token": "x" * 5000}):
        status, page, _ = await fetch(address, form)
        assert status == 400
        assert "<script>" not in page
    _, page, _ = await fetch(f"{address}?token=%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
    assert "<script>" not in page
