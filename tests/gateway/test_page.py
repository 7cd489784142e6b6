"""The gateway's page in a real Chromium."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browsers import QUERY, TEXTS, ask
from tests.support.gateways import Gateway

MARKUP = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><b>bold</b>'


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
    shares = [bar.evaluate("bar => bar.firstElementChild.offsetWidth / bar.offsetWidth") for bar in
              items.locator(".bar").all()]  # fmt: skip
    assert shares == sorted(shares, reverse=True)
    assert (shares[0], shares[-1]) == pytest.approx((1, 0.02), abs=0.01)  # the list's own range, however small it is
    expect(page.locator("#summary")).to_have_text("5 documents ranked by ranker.")
    expect(page.locator(".facts")).to_contain_text(" ms · moves from the order given")
    expect(page.locator(".cut:visible")).to_have_count(0)


def test_json_lines_and_what_was_cut(page: Page) -> None:
    """A row opens, by the keyboard too, and then has the whole text and all figures."""
    whole = "winter " * 300 + "end"
    long, short = {"doc_id": "d7", "title": "River", "text": whole, "label": 2}, {"text": "stone", "id": 3}
    ask(page, [json.dumps(long), json.dumps(short)], query="RIVER winter")
    item = page.locator("li", has_text="River")
    expect(item.locator(".title")).to_have_text("River")
    expect(item.locator(".id")).to_have_text("d7")
    expect(item.locator(".label")).to_have_text("label 2")
    expect(item.locator(".title mark")).to_have_text("River")
    expect(item.locator(".cut")).to_be_visible()
    expect(page.locator(".cut:visible")).to_have_count(1)
    expect(page.locator(".facts")).to_contain_text("1 too long for the model")
    expect(page.locator(".facts")).to_contain_text("nDCG@10 ")
    expect(item.locator(".full")).to_be_hidden()
    item.locator("summary").press("Enter")
    expect(item.locator(".full")).to_have_text(whole)
    expect(item.locator(".figures")).to_contain_text("d7label2logit")
    expect(page.locator("li", has_text="stone").locator(".id")).to_have_text("3")


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
    expect(page.locator("li .text").filter(has_text="onerror")).to_have_count(2)
    assert MARKUP in page.locator("li .text").all_text_contents()
    ask(page, [json.dumps({"title": MARKUP, "summary": MARKUP})], query=MARKUP)
    expect(page.locator(".title")).to_have_text([MARKUP])
    assert page.locator("#columns :is(img, script, b)").count() == 0
    assert page.evaluate("window.hacked === undefined")


def test_a_file_and_the_examples(page: Page, gateway: Gateway, tmp_path: Path) -> None:
    """The examples are queries of the gateway's own file; a file of queries lets one choose, too."""
    file = tmp_path / "documents.txt"
    file.write_text("\n\n".join(TEXTS), encoding="utf-8")
    opened(page, file)
    expect(page.locator("#count")).to_have_text("5 so far.")
    page.get_by_role("button", name="Example").click()
    groups = [json.loads(line) for line in gateway.examples.read_text().splitlines()]
    expect(page.locator("li")).to_have_count(len(groups[0]["documents"]))
    expect(page.get_by_label("Query", exact=True)).to_have_value(groups[0]["query"])
    chooser = page.get_by_label("Query of the file")
    assert chooser.locator("option").all_text_contents() == [group["query"] for group in groups][:10]
    chooser.select_option(index=1)
    expect(page.get_by_label("Query", exact=True)).to_have_value(groups[1]["query"])
    expect(page.locator("#results:not([aria-busy]) .facts")).to_contain_text("nDCG@10")
    named = {one["doc_id"] for one in groups[1]["documents"]}
    assert set(page.locator("li .id").all_text_contents()) == named
    opened(page, gateway.examples)
    expect(page.get_by_label("Query", exact=True)).to_have_value(groups[0]["query"])


def opened(page: Page, file: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open a file…").click()
    chooser.value.set_files(file)


def test_a_ranking_is_taken_away(page: Page, gateway: Gateway) -> None:
    """As a file, by the clipboard, and as a link, which another browser follows; the link is sent to nobody."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    texts = ["=river bridge", *TEXTS[1:]]
    ask(page, texts)
    expected = order(gateway, texts)
    expect(page.locator("li")).to_have_count(len(texts))
    with page.expect_download() as download:
        page.get_by_role("button", name="JSON").click()
    rows = json.loads(download.value.path().read_text(encoding="utf-8"))
    assert [row["summary"] for row in rows] == [texts[index] for index in expected]
    assert all(row["probability"] == pytest.approx(1 / (1 + math.exp(-row["score"]))) for row in rows)
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    table = list(csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8"))))
    assert [float(row["score"]) for row in table] == [row["score"] for row in rows]
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#shared")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()").count("\n") == len(texts) - 1
    page.get_by_role("button", name="Link").click()
    expect(page.locator("#shared")).to_contain_text("it is copied")
    assert "#ask=" in page.url and "river" not in page.url
    other = page.context.new_page()
    asked: list[str] = []
    other.on("request", lambda request: asked.append(request.url))
    other.goto(page.url)
    expect(other.locator("li")).to_have_count(len(texts))
    expect(other.get_by_label("Query", exact=True)).to_have_value(QUERY)
    assert asked and not [url for url in asked if "ask=" in url.partition("#")[0]]
    assert "#ask" not in gateway.log.read_text()
