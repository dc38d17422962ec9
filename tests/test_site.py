"""The site's pages hold all notebooks, and a browser shows them without an error, a broken link or a request elsewhere.

The browser's part needs build/site (python tools/site), playwright and a Chromium: bash .ci/site.
"""

import importlib.util
import json
import os
import re
import runpy
import shutil
import sys
from html import unescape
from urllib.parse import unquote

import pytest
from notebook_runs import LESSONS, NBS, ROOT

sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "site")]
import claims
import site_parts

SITE = ROOT / "build" / "site"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
INSTALLED = all(map(importlib.util.find_spec, ("playwright", "axe_playwright_python")))
CAN_BROWSE = SITE.exists() and CHROMIUM and INSTALLED
browser_test = pytest.mark.skipif(
    not CAN_BROWSE, reason="needs build/site, playwright, axe and Chromium: bash .ci/site"
)
PAGES = [
    "index", "claims", "cards/index", "reference/evaluation", "nbs/questions", "nbs/01_what_a_model_predicts",
    "nbs/12_dpo", "nbs/recipes/data", "nbs/package/lora/merging",
]  # fmt: skip


def test_every_lesson_recipe_and_solution_is_on_a_list():
    listed = site_parts.first_page() + site_parts.solutions_page()
    pages = [nb for nb in NBS if nb.parent.name in ("nbs", "recipes") and nb.name != "index.ipynb"]
    missing = [nb.stem for nb in pages if f"nbs/{nb.relative_to(ROOT / 'nbs').with_suffix('')}" not in listed]
    assert missing == []
    assert all(f"nbs/solutions/{lesson.stem}" in listed for lesson in LESSONS)


def test_every_package_notebook_is_in_the_reference():
    reference = "".join(text for _, text in site_parts.reference())
    notebooks = sorted((ROOT / "nbs" / "package").glob("*/*.ipynb"))
    assert [nb.stem for nb in notebooks if f"nbs/package/{nb.parent.name}/{nb.stem}" not in reference] == []
    assert "### `exact_match`" in reference and "# Of the" in reference  # with what is said of a parameter


def test_a_page_folds_what_is_folded_and_says_when_it_was_proved(monkeypatch, tmp_path):
    versions = dict.fromkeys(("torch", "transformers", "trl", "peft"), "9")
    run = {"python": "3.11.7", "device": "CPU", "versions": versions}
    proofs = {"runs": {"2026-11-30": run}, "notebooks": {LESSONS[0].stem: {"run": "2026-11-30", "seconds": 3}}}
    (tmp_path / "proofs.json").write_text(json.dumps(proofs))
    monkeypatch.setattr(claims, "PROOFS", tmp_path / "proofs.json")
    cells = json.loads(site_parts.page(LESSONS[0]))["cells"]
    assert "2026-11-30 with torch 9" in cells[1]["source"]
    assert any("hide-input" in cell["metadata"].get("tags", []) for cell in cells)
    guesses = [cell for cell in cells if "compare_guess(guess" in cell["source"]]
    assert guesses and all(cell["metadata"]["tags"] == ["hide-output"] for cell in guesses)
    assert all("'It is " in str(cell["outputs"]) for cell in guesses)
    assert not any(re.search(r"^#\s*\|", cell["source"], re.M) for cell in cells if cell["cell_type"] == "code")
    assert "Proved" not in site_parts.page(LESSONS[1])  # no run of it is on record


def test_a_page_says_which_cells_have_not_run(monkeypatch, tmp_path):
    notebook = ROOT / "nbs/package/loading/memory_estimate.ipynb"  # with a cell for a GPU, and a slow one
    run = {
        "python": "3.11.7",
        "device": "CPU",
        "versions": dict.fromkeys(("torch", "transformers", "trl", "peft"), "9"),
    }
    monkeypatch.setattr(claims, "PROOFS", tmp_path / "proofs.json")
    for slow, but in (({}, "those for a GPU and the slow ones"), ({"slow": True}, "those for a GPU")):
        one = {"package/loading/memory_estimate": {"run": "2026-11-30", "seconds": 3, **slow}}
        (tmp_path / "proofs.json").write_text(json.dumps({"runs": {"2026-11-30": run}, "notebooks": one}))
        page = site_parts.page(notebook)
        assert f"Every cell but {but} ran on 2026-11-30" in page
        assert page.count("Not run yet: this cell needs a GPU.") == 1
    waiting = [one for one in site_parts.with_dates(claims.found_in(notebook)) if one["kind"] == "not run yet"]
    assert [one["proved"] for one in waiting] == [""]


@pytest.mark.parametrize("address", ["", "https://github.com/some/where"])
def test_colab_edit_and_repository_are_offered_where_there_is_an_address(address, monkeypatch):
    monkeypatch.setenv("SITE_REPOSITORY", address)
    options = runpy.run_path(str(ROOT / "tools" / "site" / "conf.py"))["html_theme_options"]
    assert options["repository_url"] == address and ("colab_url" in options["launch_buttons"]) == bool(address)
    assert options["use_edit_page_button"] == options["use_repository_button"] == bool(address)


@pytest.mark.parametrize("address", ["", "https://a.b/course"])
def test_each_card_has_its_picture_and_says_so_where_it_is_shared(address, monkeypatch):
    monkeypatch.setattr(site_parts, "SITE", address)
    files = dict(site_parts.cards())
    pictures = [name for name, content in files.items() if name.endswith(".png") and content[:4] == b"\x89PNG"]
    assert len(pictures) >= 8
    for name in pictures:
        card = files[name.replace(".png", ".md")].decode()
        assert "'og:title'" in card and (f"'og:image': {address}/{name}" in card) == bool(address)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@browser_test
@pytest.mark.whole
@pytest.mark.parametrize("width, theme", [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_in_a_browser(browser, name, width, theme):
    "No error, no request elsewhere, nothing wider than the page, no picture without words; axe finds nothing serious."
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    page.on("request", lambda one: wrong.append(one.url) if not one.url.startswith(("file:", "data:")) else None)
    page.goto((SITE / f"{name}.html").as_uri())
    page.wait_for_load_state()
    assert wrong == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    silent = "images => images.filter(image => !image.alt).map(image => image.src.slice(0, 80))"
    assert page.eval_on_selector_all("img", silent) == []
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
    assert serious == []
    context.close()


@browser_test
@pytest.mark.whole
def test_the_first_page_plays_a_training_and_stops_at_its_end(browser):
    page = browser.new_page()
    page.clock.install()
    page.goto((SITE / "index.html").as_uri())
    drawing, button = page.locator(".ft-drawing").first, page.locator(".play")
    slider = drawing.locator("input")
    first = drawing.inner_text()
    button.click()
    page.clock.run_for(1600)
    assert (slider.input_value(), button.inner_text()) == ("1", "Stop")
    page.clock.run_for(60_000)
    assert (slider.input_value(), button.inner_text()) == (slider.get_attribute("max"), "Play")
    assert drawing.inner_text() != first
    button.click()  # from the beginning again
    assert slider.input_value() == "0"
    page.close()


@browser_test
@pytest.mark.whole
def test_a_slider_moves_and_the_search_and_the_ledger_find(browser):
    page = browser.new_page()
    page.goto((SITE / "nbs" / "01_what_a_model_predicts.html").as_uri())
    drawing = page.locator(".ft-drawing:has(input[type=range])").first
    before = drawing.inner_html()
    drawing.locator("input").first.press("ArrowRight")
    assert drawing.inner_html() != before
    for words, expected in [
        ("Vocab size mismatch model has 32000", "exception-vocab-size-mismatch"),
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 15.77 GiB in all", "torch-outofmemoryerror"),
        ("Asking to pad but the tokenizer does not have a padding token", "valueerror-asking-to-pad"),
        ("tokenizer.chat_template is not set", "valueerror-cannot-use-chat-template"),
        ("device-side assert triggered", "runtimeerror-cuda-error-device-side"),
        ("must be divisible by num_generations", "valueerror-generation-batch-size"),
    ]:
        page.goto((SITE / "search.html").as_uri() + "?q=" + words)
        page.wait_for_selector("#search-results li", timeout=60_000)
        first = page.locator("#search-results li a").first.get_attribute("href")
        assert expected in first, (words, first)
    page.goto((SITE / "claims.html").as_uri())
    page.fill("#claim-words", "padding")
    rows = page.locator("#claims tbody tr")
    assert 1 <= rows.count() <= 200 and "padding" in rows.first.inner_text().lower()
    page.fill("#claim-words", "")
    page.select_option("#claim-kind", "not run yet")
    assert rows.count() and rows.locator("td").last.inner_text() == "not run yet"
    page.close()


@pytest.mark.skipif(not SITE.exists(), reason="needs build/site: python tools/site")
@pytest.mark.whole
def test_no_link_leads_nowhere():
    names, wrong = {}, []
    for file in SITE.rglob("*.html"):
        names[file] = set(re.findall(r'\b(?:id|name)="([^"]+)"', file.read_text(encoding="utf-8")))
    for file in names:
        for link in re.findall(r'<a [^>]*href="([^"]+)"', file.read_text(encoding="utf-8")):
            address, _, anchor = unquote(unescape(link)).partition("#")
            target = (file.parent / address).resolve() if address else file
            outside = re.match(r"[a-z]+:", address)
            if not outside and (not target.exists() or anchor and anchor not in names.get(target, {anchor})):
                wrong.append((file.relative_to(SITE).as_posix(), link))
    assert wrong == []
