"""The page in a real browser, offline: it draws, says nothing in the console, and asks for nothing."""

import json

import pytest

from paretune.report import write_report
from tests.report.browser import DESKTOP, PHONE, browser, chromium
from tests.report.runs import HOSTILE, front_document, front_run, write_front
from tests.report.test_report import hostile

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def run(tmp_path_factory, plans):
    chromium()
    run = front_run(tmp_path_factory.mktemp("browser") / "front", plans)
    write_report(run)
    return run


def quiet(opened, file):
    """No console message, and no request but for the file itself."""
    assert opened.said == []
    assert set(opened.requests) == {file.resolve().as_uri()}


def names(page):
    return page.locator("#candidates tbody tr:visible th").all_inner_texts()


def test_the_page_works_and_stays_offline(run, tmp_path):
    """One browser for all: starting one takes longer than everything else here."""
    file = run / "report.html"
    source = front_document()
    with browser(DESKTOP, "light") as opened:
        page = opened.page
        opened.open(file)

        opened.draw_all()

        # A point under the mouse: hover text, and the panel with plan, settings, seeds and command.
        point = page.locator("#front .scatterlayer .trace").nth(2).locator(".point").first
        box = point.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector("#point pre")
        shown = page.locator("#point h3").inner_text()
        candidate = next(c for c in source["candidates"] if c["name"] == shown)
        panel = page.locator("#point").inner_text()
        assert candidate["command"] in panel and candidate["plan"] in panel and "0, 1, 2" in panel
        assert shown in page.locator("#front .hoverlayer").text_content()
        page.screenshot(path=tmp_path / "desktop_light.png")

        # Sorting by a number, both ways, and by name.
        scores = {c["name"]: c["score"] for c in source["candidates"]}
        by_score = page.get_by_role("button", name="f1", exact=True).first
        by_score.click()
        assert names(page) == sorted(scores, key=scores.get, reverse=True)
        assert page.locator('#candidates th[aria-sort="descending"]').count() == 1
        by_score.click()
        assert names(page) == sorted(scores, key=scores.get)
        page.locator("#candidates thead button").first.focus()
        page.keyboard.press("Enter")
        assert names(page)[0] == "adapter 0.1%"

        # Filtering by words, also by those of the settings, and by the front.
        page.fill('[data-table="candidates"]', "ird 0.5")
        assert names(page) == ["ird 0.5%"]
        page.fill('[data-table="candidates"]', "samples=1024")
        assert {name.split()[0] for name in names(page)} == {"fish", "ird"}
        page.fill('[data-table="candidates"]', "")
        page.check("#only-front")
        assert set(names(page)) == {c["name"] for c in source["candidates"] if c["on_front"]}
        page.uncheck("#only-front")

        # A row by keyboard shows its point.
        page.locator("#candidates .pick", has_text="lora 2%").focus()
        page.keyboard.press("Enter")
        assert page.locator("#point h3").inner_text() == "lora 2%"
        assert "lora 2%" in page.locator("#front .hoverlayer").text_content()

        # Another cost, another plan, another tensor.
        page.select_option("#cost", "step_seconds")
        page.wait_for_selector("#front .xtitle:has-text('seconds')")
        labels = page.locator("#plan option").all_inner_texts()
        page.select_option("#plan", label=next(label for label in labels if label.startswith("ird")))
        assert page.locator(".plan:visible .map .heatmaplayer .hm").count() == 1
        page.select_option(".plan:visible .tensor", index=1)
        page.wait_for_selector(".plan:visible .density .heatmaplayer .hm")

        # The other theme.
        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(ground)
        page.locator("#theme").click()
        assert page.evaluate(ground) != light
        assert page.locator("#theme").inner_text() == "Light"
        page.screenshot(path=tmp_path / "desktop_dark.png")

        # A phone in the dark: the system's theme, nothing wider than the screen.
        page.set_viewport_size(PHONE)
        page.emulate_media(color_scheme="dark")
        opened.open(file)
        assert page.evaluate(ground) != light
        opened.draw_all()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        # The names of places stay in sight when their table is scrolled, and leave room beside them.
        page.locator(".plan:visible details summary").first.click()
        name = page.locator(".plan:visible .places tbody th").first.bounding_box()
        assert name["width"] < 0.6 * PHONE["width"]
        page.screenshot(path=tmp_path / "phone_dark.png", full_page=True)
        quiet(opened, file)

        # Hostile texts in every field: shown, never read.
        bad = run.parent / "hostile"
        bad.mkdir()
        (bad / "plans").symlink_to(run / "plans")
        document = hostile(front_document())
        document["candidates"][0]["settings"] = {HOSTILE: HOSTILE}
        write_front(bad, document)
        write_report(bad)
        opened.requests.clear()
        opened.open(bad / "report.html")
        opened.draw_all()
        for button in page.locator("#candidates .pick").all()[:3]:
            button.click()
        assert page.evaluate("window.hacked") is None
        assert page.locator("img, a[href^='javascript']").count() == 0
        assert page.locator("#point h3").inner_text().endswith("&\u2028")
        assert page.locator("script").count() == 3
        quiet(opened, bad / "report.html")

        # Half a run.
        half = front_document() | {"status": "running", "recommendation": None, "candidates": []}
        write_front(bad, half)
        write_report(bad)
        opened.open(bad / "report.html")
        assert "No candidate has a score yet." in page.locator(".note").first.inner_text()
        quiet(opened, bad / "report.html")
    assert json.loads((run / "report.json").read_text())["schema"] == 1
