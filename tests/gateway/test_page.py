"""The gateway's page in a real Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browsers import chromium
from tests.support.gateways import Gateway, gateway_running
from tests.support.servers import ports

QUERY = "garden bridge"
TEXTS = ["river bridge", "copper forest", "garden market of silver", "winter garden", "stone"]
MARKUP = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><b>bold</b>'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, gateway: Gateway) -> Iterator[Page]:
    console_errors: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: console_errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: console_errors.append(str(error)))
    page.goto(gateway.url)
    expect(page.locator("#health")).to_have_text("ready")
    yield page
    context.close()
    assert all(url.startswith((gateway.url, "data:")) for url in asked)
    assert console_errors == []


def ask(page: Page, documents: list[str], query: str = QUERY) -> None:
    page.get_by_label("Query").fill(query)
    page.get_by_label("Candidates").fill("\n".join(documents))
    page.get_by_role("button", name="Rank").click()


def order(gateway: Gateway, documents: list[str]) -> list[int]:
    answer = httpx.post(f"{gateway.url}/v2/rerank", json={"query": QUERY, "documents": documents})
    return [one["index"] for one in answer.json()["results"]]


def test_candidates_are_ranked_with_scores_and_moves(page: Page, gateway: Gateway) -> None:
    ask(page, TEXTS)
    items = page.locator("li")
    expect(items).to_have_count(len(TEXTS))
    expected = order(gateway, TEXTS)
    assert items.locator(".text").all_text_contents() == [TEXTS[index] for index in expected]
    assert items.locator(".place").all_text_contents() == ["1", "2", "3", "4", "5"]
    for place, (index, item) in enumerate(zip(expected, items.all(), strict=True)):
        words = item.locator(".words").text_content()
        moved = "same place" if index == place else f"{'up' if index > place else 'down'} {abs(index - place)}"
        assert words is not None and words.startswith(moved)
        score = float(item.locator(".score").text_content() or "")
        share = item.locator(".bar").evaluate("bar => bar.firstElementChild.offsetWidth / bar.offsetWidth")
        assert share == pytest.approx(score, abs=0.05)
    expect(page.locator("#summary")).to_have_text("5 documents ranked by ranker.")
    expect(page.locator(".facts")).to_contain_text(" ms · moves from the order given")
    expect(page.locator(".cut:visible")).to_have_count(0)


def test_json_lines_and_what_was_cut(page: Page) -> None:
    ask(page, [json.dumps({"title": "River", "summary": "winter " * 300}), json.dumps({"text": "stone", "id": 3})])
    long = page.locator("li", has_text="River")
    expect(long.locator(".title")).to_have_text("River")
    expect(long.locator(".cut")).to_be_visible()
    expect(page.locator(".cut:visible")).to_have_count(1)
    expect(page.locator(".facts")).to_contain_text("1 too long for the model")


def test_two_models_side_by_side(page: Page, gateway: Gateway) -> None:
    assert page.get_by_label("Model").locator("option").all_text_contents() == ["ranker", "again"]
    page.get_by_label("Compare with").select_option("again")
    ask(page, TEXTS)
    columns = page.locator(".column")
    expect(columns).to_have_count(2)
    expect(page.locator("#summary")).to_have_text("5 documents ranked by ranker and again. Both have the same order.")
    left, right = columns.nth(0).bounding_box(), columns.nth(1).bounding_box()
    assert left and right
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    expect(columns.nth(1).locator(".facts")).to_contain_text("moves from ranker's order")
    assert set(columns.nth(1).locator(".words").all_text_contents()) == {"same place"}


def test_the_keyboard_alone_will_do(page: Page) -> None:
    page.keyboard.type(QUERY)  # the query has the focus
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        focus = page.evaluate("[document.activeElement.id || document.activeElement.tagName, "
                              "getComputedStyle(document.activeElement).outlineStyle]")  # fmt: skip
        reached.append(focus[0])
        assert focus[1] != "none"
        if focus[0] == "documents":
            page.keyboard.type("stone\nwinter garden")
            page.keyboard.press("Control+Enter")
            expect(page.locator("li")).to_have_count(2)
        if focus[0] == "other":
            page.keyboard.press("ArrowDown")
        if focus[0] == "rank":
            page.keyboard.press("Enter")
            expect(page.locator("li")).to_have_count(4)
    assert reached == ["example", "open", "documents", "model", "other", "SUMMARY", "rank"]


def test_every_control_has_a_name(page: Page) -> None:
    page.locator("summary").click()
    for control in page.locator("input:visible, textarea, select, button").all():
        name = control.evaluate("one => (one.labels?.[0] ?? one).textContent.trim()")
        assert name
    assert page.locator("#summary").get_attribute("aria-live") == "polite"
    assert page.locator("#problem").get_attribute("role") == "alert"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(browser: Browser, gateway: Gateway, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": 360, "height": 740}, color_scheme="dark" if scheme == "dark" else "light"
    )
    page = context.new_page()
    page.goto(gateway.url)
    page.get_by_label("Compare with").select_option("again")
    ask(page, ["unbroken" * 60, *TEXTS], query="q" * 300)
    expect(page.locator("li")).to_have_count(12)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(page.get_by_role("heading", name="Ranking")).to_be_in_viewport()
    boxes = [column.bounding_box() for column in page.locator(".column").all()]
    assert boxes[0] and boxes[1] and boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(one => one > 127)")
    assert light == (scheme == "light")
    context.close()


def test_text_is_text(page: Page) -> None:
    ask(page, [MARKUP, json.dumps(MARKUP)], query=MARKUP)
    expect(page.locator(".text").filter(has_text="onerror")).to_have_count(2)
    assert MARKUP in page.locator(".text").all_text_contents()
    ask(page, [json.dumps({"title": MARKUP, "summary": MARKUP})], query=MARKUP)
    expect(page.locator(".title")).to_have_text([MARKUP])
    assert page.locator("#columns :is(img, script, b)").count() == 0
    assert page.evaluate("window.hacked === undefined")


def test_a_file_and_the_example(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "documents.txt"
    file.write_text("\n\n".join(TEXTS), encoding="utf-8")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open a file…").click()
    chooser.value.set_files(file)
    expect(page.locator("#count")).to_have_text("5 so far.")
    page.get_by_role("button", name="Example").click()
    expect(page.locator("li")).to_have_count(5)
    expect(page.locator("li .title").first).not_to_be_empty()


AT_FAULT = [
    (" ", TEXTS, "Type a query."),
    (QUERY, ["", " "], "Give at least one candidate."),
    (QUERY, ['{"text": "a"}', "", "{b"], "Candidates, line 3: is not JSON, though the first one looks like it."),
    (QUERY, ['{"text": "a"}', "river"], "Candidates, line 2: is not JSON, though the first one looks like it."),
    (QUERY, ['{"text": "a"}', "null"], "Candidates, line 2: needs an object, in braces."),
    (QUERY, ['{"url": "a"}'], "Candidates, line 1: needs a title, a summary or a text."),
    (QUERY, ['{"text": 3}'], "Candidates, line 1: text must be a string."),
]


def test_input_at_fault(page: Page) -> None:
    for query, lines, message in AT_FAULT:
        ask(page, TEXTS)
        expect(page.locator("li")).to_have_count(5)
        expect(page.locator("#problem")).to_be_hidden()
        ask(page, lines, query=query)
        expect(page.locator("#problem")).to_have_text(message)
        expect(page.locator("li")).to_have_count(0)


def test_errors_in_words(browser: Browser, tmp_path: Path) -> None:
    """A gateway that asks for a key, whose ranking server is not there, and that goes itself in the end."""
    page = browser.new_page()
    flags = ["--servers", f"127.0.0.1:{ports()['grpc']}", "--api_keys", "secret", "--max_documents", "2"]
    problem = page.locator("#problem")
    with gateway_running(tmp_path / "log", *flags) as gateway:
        page.goto(gateway.url)
        expect(page.locator("#health")).to_have_text("the ranking server does not answer")
        ask(page, ["river"])
        expect(problem).to_contain_text("The gateway asks for an API key")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type("secret")
        page.keyboard.press("Enter")
        expect(problem).to_contain_text("The ranking server is not there, or busy: no server answers at")
        ask(page, TEXTS)
        expect(problem).to_contain_text("That is too much at once: 5 documents are more than 2")
    ask(page, TEXTS)
    expect(problem).to_have_text("The gateway does not answer. Is it running?")
    page.close()
