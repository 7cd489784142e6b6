"""The gateway's page where input, the gateway or a ranking server is at fault, in a real Chromium."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from tests.support.browsers import QUERY, TEXTS, ask
from tests.support.gateways import Gateway, gateway_running
from tests.support.servers import Server, ports

LOOK_MS = 10_000  # between two looks at the gateway's health
AT_FAULT = [
    (" ", TEXTS, "Type a query."),
    (QUERY, ["", " "], "Give at least one candidate."),
    (QUERY, ["[]"], "Give at least one candidate."),
    (QUERY, ['{"text": "a"}', "", "{b"], "Candidates, line 3: is not JSON, though the first one looks like it."),
]


def test_input_at_fault(page: Page) -> None:
    for query, lines, message in AT_FAULT:
        ask(page, TEXTS)
        expect(page.locator("li")).to_have_count(5)
        expect(page.locator("#problem")).to_be_hidden()
        ask(page, lines, query=query)
        expect(page.locator("#problem")).to_have_text(message)
        expect(page.locator("li")).to_have_count(0)


def test_a_gateway_that_does_not_tell_its_models_ranks_and_is_asked_again(browser: Browser, gateway: Gateway) -> None:
    page = browser.new_page()
    page.clock.install()
    page.route("**/v1/models", lambda route: route.fulfill(status=500, body="broken"))
    page.goto(gateway.url)
    expect(page.locator("#problem")).to_have_text("The gateway does not tell its models: it answered 500.")
    ask(page, TEXTS)
    expect(page.locator("#summary")).to_have_text("5 documents ranked by ranker.")
    expect(page.locator("#problem")).to_be_hidden()
    page.unroute("**/v1/models")
    page.clock.fast_forward(LOOK_MS)
    expect(page.get_by_label("Model").locator("option")).to_have_text(["ranker", "again"])
    page.close()


def test_errors_in_words(browser: Browser, server: Server, tmp_path: Path) -> None:
    """A gateway that asks for a key, one of whose ranking servers is not there, and that goes itself in the end."""
    page = browser.new_page()
    page.clock.install()
    models = f"gone=@127.0.0.1:{ports()['grpc']},ranker=@{server.url}"
    flags = ["--models", models, "--api_keys", "secret", "--max_documents", "5"]
    problem, gone = page.locator("#problem"), "The ranking server is not there, or busy: no server answers at"
    with gateway_running(tmp_path / "log", *flags) as gateway:
        page.goto(gateway.url)
        expect(page.locator("#health")).to_have_text("the ranking server does not answer")
        ask(page, ["river"])
        expect(problem).to_contain_text("The gateway asks for an API key")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type("secret")
        page.keyboard.press("Enter")
        expect(problem).to_contain_text(gone)
        page.get_by_label("Model").select_option("ranker")
        page.get_by_label("Compare with").select_option("gone")
        ask(page, TEXTS)
        expect(problem).to_contain_text(f"gone: {gone}")
        expect(page.locator("li")).to_have_count(5)  # of the model that answers
        expect(page.locator("#summary")).to_have_text("5 documents ranked by ranker.")
        ask(page, [*TEXTS, "one"])
        expect(problem).to_contain_text("That is too much at once: 6 documents are more than 5")
    page.clock.fast_forward(LOOK_MS)
    expect(page.locator("#health")).to_have_text("the gateway does not answer")
    ask(page, TEXTS)
    expect(problem).to_have_text("The gateway does not answer. Is it running?")
    page.close()
