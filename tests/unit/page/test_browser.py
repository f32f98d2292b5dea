"""The page in a real browser: Debian's Chromium, driven by Playwright, checked by axe-core.

One browser and one small page for all tests. What a click shows is compared with what the records hold.
"""

from __future__ import annotations

import pytest

from dual_lora.report.workspace import Workspace
from tests.unit.page.page_builder import DESKTOP, FIGURE, HOSTILE, PHONE, document, study, workspace
from tests.unit.report.report_builder import EXPERIMENT

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: make install")


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Workspace:
    text = EXPERIMENT.replace("  published_models", FIGURE).replace(
        "seed: 0", "recipe.learning_rate: 2e-4\n      seed: 0"
    )
    made = workspace(tmp_path_factory.mktemp("page"), *study(), text=text)
    (made.records / "damaged.json").write_text("{", encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def file(space) -> str:
    path = space.root / "report.html"
    path.write_text(document(space), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(visit, file):
    return visit(file)


def runs(space: Workspace, method: str) -> list[str]:
    held = (record for record in space.all_records() if record.name("method") == method)
    return [record.run_id for record in sorted(held, key=lambda record: record.seed)]


def views(space: Workspace) -> list[str]:
    one, other = runs(space, "lora")[0], runs(space, "dual_lora")[0]
    return ["overview", "tables", "table/table_x", "figures", "runs", f"run/{one}", f"compare/{one}/{other}", "reading"]


def go(page, view: str) -> None:
    page.evaluate("view => { location.hash = view }", view)
    page.wait_for_function("view => document.querySelector('main').dataset.view === view", arg=view)


def column(page, heading: str) -> list[str]:
    """Return the texts of a column of the first table of the view, from top to bottom."""
    headings = page.locator("main table").first.locator("thead th").all_inner_texts()
    place = headings.index(heading)
    cells = page.locator("main table").first.locator(f"tbody tr > :nth-child({place + 1})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_every_view_opens_at_every_width_and_fits_it(page, space):
    for name, size in {"phone": PHONE, "desktop": DESKTOP}.items():
        page.set_viewport_size(size)
        for view in views(space):
            go(page, view)
            assert page.locator("h1").count() == 1, view
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (view, name)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page, space, scheme):
    page.emulate_media(color_scheme=scheme)
    for view in views(space):
        go(page, view)
        found = axe.Axe().run(page)
        assert found.violations_count == 0, f"{view}\n{found.generate_report()}"


def test_the_overview_says_the_verdict_with_its_interval_and_the_refused_file(page):
    assert "damaged.json" in page.locator("[role=alert]").inner_text()
    row = page.locator("tbody tr", has_text="DUAL_LORA").first.inner_text()
    assert "✓ supported" in row
    assert "+4.17 [+3.74, +4.60], 6 pairs" in row  # scipy.stats.t.interval of 4, 4, 5, 4, 4, 4
    assert page.locator(".tiles li", has_text="supported").first.inner_text().startswith("1")
    answer = page.locator(".answer").inner_text()
    assert answer.startswith("Better in 1 of 1 comparison, worse in 0. Of 1 comparisons with LORA")
    assert "supported: A table, Small" in answer
    assert "BoolQ +4.17 points [+3.74, +4.60] against LORA (higher is better), 6 pairs of runs" in answer


def test_the_answer_tells_rows_of_one_method_apart(visit, space, tmp_path):
    text, ours = document(space), '"method":"DUAL_LORA","name"'  # of a verdict
    assert ours in text
    path = tmp_path / "report.html"
    path.write_text(text.replace(ours, ours.replace("LORA", "LORA (at 8e-3)")), encoding="utf-8")
    answer = visit(path.as_uri()).locator(".answer").inner_text()
    assert "against LORA (at 8e-3) (higher is better)" in answer


def test_a_table_sorts_by_a_column_both_ways(page):
    go(page, "table/table_x")
    assert column(page, "method")[0] == "NONEg" or column(page, "method")[0].startswith(("Prefix", "NONE"))
    heading = page.get_by_role("button", name="BoolQ", exact=True)
    heading.click()
    values = [text.split("\n")[0].split(" ")[0] for text in column(page, "BoolQ")]
    assert values == sorted(values, key=float, reverse=True)
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("BoolQ")
    heading.click()
    assert [text.split("\n")[0].split(" ")[0] for text in column(page, "BoolQ")] == values[::-1]


def test_a_table_is_filtered(page):
    go(page, "table/table_x")
    every = len(column(page, "method"))
    page.get_by_role("combobox", name="method", exact=True).select_option("DUAL_LORA")
    assert column(page, "method") == ["DUAL_LORA"]
    page.get_by_role("combobox", name="method", exact=True).select_option("")
    page.get_by_role("combobox", name="rows", exact=True).select_option("here")
    assert len(column(page, "method")) == every - 2  # without the two published ones
    assert page.locator("#said").inner_text() == f"{every - 2} rows shown"


def test_a_cell_says_where_it_comes_from(page, space):
    go(page, "table/table_x")
    cell = page.get_by_role("button", name="DUAL_LORA, BoolQ: 65.2")
    cell.click()
    text = page.locator("dialog").inner_text()
    for part in ("65.2 ± 1.2", "Holm p", "better", "c0ffee", "NVIDIA H100", "-m experiment=table_x method=dual_lora"):
        assert part in text
    assert page.locator("dialog a[href^='#run/']").count() == 6
    page.keyboard.press("Escape")
    assert page.locator("dialog").is_hidden()
    assert cell.evaluate("node => node === document.activeElement")


def test_an_empty_cell_shows_its_command(page):
    go(page, "table/table_x")
    page.get_by_role("button", name="LORA, PIQA: 70.0").first.click()
    assert "A paper & its_table" not in page.locator("dialog").inner_text()  # nothing was published of PIQA
    page.keyboard.press("Escape")
    page.get_by_role("button", name="LORA, BoolQ: 61.0").first.click()
    assert "A paper & its_table" in page.locator("dialog").inner_text()


def test_two_runs_are_compared(page, space):
    go(page, "runs")
    one, other = runs(space, "lora")[0], runs(space, "dual_lora")[3]
    page.get_by_label(f"compare {one}").check()
    page.get_by_label(f"compare {other}").check()
    page.get_by_role("link", name="compare").click()
    page.wait_for_selector("h1:has-text('Two runs')")
    differing = column(page, "settings that differ")
    assert "method.name" in differing
    assert "seed" in differing
    assert "model.name" not in differing
    costs = page.get_by_role("region", name="cost and origin").inner_text()
    assert "2.0 GiB" in costs
    assert "120 s" in costs
    assert "+4.0" in page.get_by_role("region", name="scores").inner_text()  # 0.64 and 0.60


def test_a_run_is_next_to_the_reference_of_its_seed_and_the_way_back_keeps_the_filter(page, space):
    go(page, "table/table_x")
    page.get_by_role("combobox", name="rows", exact=True).select_option("here")
    page.get_by_role("button", name="DUAL_LORA, BoolQ: 65.2").click()
    links = page.locator("dialog a", has_text="next to LORA")
    pairs = zip(runs(space, "lora"), runs(space, "dual_lora"), strict=True)
    assert [link.get_attribute("href") for link in links.all()] == [f"#compare/{a}/{b}" for a, b in pairs]
    links.first.click()
    page.wait_for_selector("h1:has-text('Two runs')")
    page.go_back()
    page.wait_for_selector("h1:has-text('A table')")
    assert page.get_by_role("combobox", name="rows", exact=True).input_value() == "here"


def test_texts_of_records_are_shown_as_they_are(page, space):
    go(page, f"run/{runs(space, 'lora')[0]}")
    text = page.locator("main").inner_text()
    assert text.count(HOSTILE) == 3  # a note, a sample's input, its reply
    assert "Small [U+202E]<b>model</b>" in text


def test_a_run_shows_what_it_shares_with_its_sweep(page, space):
    assert "6 of 13 runs with settings that have no public source" in page.locator("main").inner_text()
    go(page, f"run/{runs(space, 'lora')[0]}")
    told = page.locator("main").text_content()
    shared = ["threads7", "commitc0ffee", "boolqtestlastgenerateaccuracy60.0", "settings.r32"]
    for text in (*shared, f"Notes{HOSTILE}", f"input {HOSTILE}", "train loss"):
        assert text in told


def test_the_keyboard_is_enough(page):
    def tab_to(selector: str, most: int = 80) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        pytest.fail(f"{selector} is not reached")

    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the link that skips the navigation
    assert page.evaluate("document.activeElement.id") == "main"
    page.evaluate("document.activeElement.blur()")
    tab_to("nav a[href='#tables']")
    page.keyboard.press("Enter")
    tab_to("main a[href='#table/table_x']")
    page.keyboard.press("Enter")
    tab_to("main .sort")
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort]").count() == 1
    tab_to("main .cell")
    page.keyboard.press("Enter")
    assert page.locator("dialog").is_visible()
    assert page.evaluate("document.activeElement.closest('dialog') !== null")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.matches('.cell')")


def test_figures_are_drawn_as_vectors_and_print_without_controls(page):
    go(page, "figures")
    assert page.locator("figure.plot svg[aria-label]").count() >= 3
    assert page.locator("canvas").count() == 0
    assert page.locator("figure.plot path[stroke], figure.plot circle").count() > 0
    figure = page.get_by_role("img", name="A block: train loss")
    figure.scroll_into_view_if_needed()
    box = figure.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("figure svg :text('step')")  # the point below the pointer says what it is
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("nav").is_hidden()
    assert page.locator("select").first.is_hidden()
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.emulate_media(media="screen")
    page.locator("#theme").click(click_count=2)  # dark by choice
    assert page.evaluate(background) != "rgb(255, 255, 255)"
    page.emulate_media(media="print")
    assert page.evaluate(background) == "rgb(255, 255, 255)"


def test_figures_of_a_study_have_their_points(page):
    go(page, "figures")
    differences = page.locator("section", has=page.get_by_role("heading", name="Differences from the reference"))
    assert differences.get_by_role("img", name="BoolQ: each method minus LORA").count() == 1
    assert differences.locator("figure svg g[aria-label='dot'], figure svg path[stroke]").count() > 0
    differences.get_by_role("combobox", name="score").select_option("1")
    assert differences.get_by_role("img", name="PIQA: each method minus LORA").count() == 1
    inside = page.locator("section", has=page.get_by_role("heading", name="Inside the update"))
    for name in ("zeros in ReLU(BA) by step", "cosine with full fine-tuning by adapted layer, from the first on"):
        assert inside.get_by_role("img", name=name).count() == 1
    assert inside.locator("figcaption").count() == 6


def test_the_theme_can_be_chosen(page):
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.locator("#theme").click()
    assert page.evaluate(background) == light
    page.locator("#theme").click()
    assert page.evaluate(background) != light


def test_unknown_addresses_say_so(page):
    for view in ("run/nothing", "compare/nothing/neither", "run/%E0%A4%A"):
        page.evaluate("view => { location.hash = view }", view)
        page.wait_for_selector("h1:has-text('No such run')")


def test_a_chooser_that_its_choice_makes_anew_keeps_the_keyboard(page):
    go(page, "figures")
    score = page.get_by_role("combobox", name="score").first
    score.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.closest('label')?.innerText.startsWith('score')")
    assert page.evaluate("document.activeElement.value") == "1"


def test_axe_finds_nothing_in_what_a_click_opens(page):
    go(page, "table/table_x")
    page.get_by_role("combobox", name="rows", exact=True).select_option("all")
    for name in ("DUAL_LORA, BoolQ: 65.2", "LoRA (r=32), BoolQ: 68.9"):
        page.get_by_role("button", name=name).first.click()
        assert axe.Axe().run(page).violations_count == 0, name
        page.keyboard.press("Escape")


def test_a_browser_that_cannot_unpack_the_runs_says_so(browser, file):
    tab = browser.new_page()
    tab.add_init_script("delete window.DecompressionStream")
    tab.goto(file)
    assert tab.locator("main").inner_text().startswith("This page needs a browser of 2023 or later.")
    tab.close()


def test_the_overview_is_there_before_the_runs_and_nothing_on_it_can_be_clicked_until_they_are(browser, file):
    tab = browser.new_page()
    tab.add_init_script("Response.prototype.json = () => new Promise(() => {})")
    tab.goto(file)
    assert tab.locator(".answer").inner_text().startswith("Better in 1 of 1 comparison")
    assert tab.locator("main[inert]").count() == 1
    tab.close()


def test_views_of_runs_open_by_their_address(page, space):
    for view in [view for view in views(space) if view.startswith(("figures", "runs", "run/", "compare/"))]:
        go(page, view)
        page.reload()
        page.wait_for_selector("main[data-view]:not([inert])", state="attached")
        assert page.locator("h1").count() == 1
        assert page.locator("main").get_attribute("data-view") == view
