"""The report in a real browser: it loads, moves, is read by keyboard, and data stay text."""

import json
import re

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from browser import DESKTOP, PHONE, chromium, look_from
from fastcyclegan.runs.metrics import MetricsLog
from fastcyclegan.runs.report.comparison import compare
from fastcyclegan.runs.report.page import RunPage
from report_runs import make_run

SHOWN = """
return [...document.querySelectorAll('.picture')].filter(p => !p.hidden).map(p => p.dataset.step)
"""
LOADED = """
const done = arguments[0], images = [...document.images];
Promise.all(images.map(i => i.decode())).then(
  () => done(images.map(i => i.naturalWidth)), error => done(String(error)));
"""
READ = """
const items = [...document.querySelectorAll('.legend li')];
const of = (item, what) => item.querySelector(what);
return Object.fromEntries(items.map((i) => [of(i, '.name').textContent, of(i, 'output').value]));
"""
NOT_OURS = "</script><script>window.taken = 1</script><img src=x onerror='window.taken = 2'>"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    """Addresses of one run's page, of a hostile one's, and of a comparison."""
    place = tmp_path_factory.mktemp("runs")
    folders = [
        make_run(place / "one", 400, 5, lr=1e-3),
        make_run(place / "two", 200, 2, name="two"),
        make_run(place / "<b>three", 300, 3, name=NOT_OURS, dataroot=NOT_OURS),
    ]
    hostile = folders[2]
    hostile.write_quarantine([(place / NOT_OURS, NOT_OURS)])
    hostile.update_config(machine={NOT_OURS: NOT_OURS})
    log = MetricsLog(hostile.metrics)
    log.write("event", 300, event=NOT_OURS)
    log.write("eval", 300, **{"</script><script>taken=3</script>": 1.0, "<b>": 2.0})
    found = {}
    for folder, name in zip(folders, ("one", "two", "hostile"), strict=True):
        page = RunPage(folder)
        page.refresh()
        found[name] = page.write().as_uri()
    comparison = place / "comparison.html"
    comparison.write_text(compare([folder.root for folder in folders]), encoding="utf-8")
    return found | {"comparison": comparison.as_uri()}


@pytest.fixture
def show(driver, pages):
    """Open a page by its name; afterwards the console must be empty, and nothing was fetched."""

    def opened(name, size=DESKTOP, dark=False):
        look_from(driver, size, dark)
        driver.get(pages[name])
        return driver

    for kind in ("browser", "performance"):
        driver.get_log(kind)
    yield opened
    assert driver.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]
    assert sent and {url.partition(":")[0] for url in sent} <= {"file", "data"}
    assert {url for url in sent if url.startswith("file")} <= set(pages.values())


@pytest.mark.parametrize(("name", "images"), [("one", 5), ("hostile", 3), ("comparison", 10)])
def test_every_image_loads(show, name, images):
    widths = show(name).execute_async_script(LOADED)
    assert widths == [90] * images


def test_the_slider_moves_through_the_steps_by_keyboard_and_buttons(show):
    page = show("one")
    slider, said = page.find_element(By.ID, "step"), page.find_element(By.ID, "step-shown")
    earlier, later = page.find_elements(By.CSS_SELECTOR, "[data-move]")
    assert page.execute_script(SHOWN) == ["400"] and said.text == "step 400"
    assert earlier.is_enabled() and not later.is_enabled()
    seen = []
    for key in (Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.HOME, Keys.END):
        slider.send_keys(key)
        seen += page.execute_script(SHOWN)
        assert said.text == f"step {seen[-1]}" == slider.get_attribute("aria-valuetext")
    assert seen == ["320", "240", "80", "400"]
    earlier.send_keys(Keys.ENTER)
    assert page.execute_script(SHOWN) == ["320"]
    later.click()
    assert page.execute_script(SHOWN) == ["400"] and not later.is_enabled()


def test_the_curves_are_read_off_at_the_step_of_the_images_or_another(show):
    page = show("one")
    assert page.execute_script(READ)["psnr_B"] == "20.5"
    page.find_element(By.ID, "step").send_keys(Keys.HOME)
    assert page.find_element(By.ID, "at-step").text == "80"
    values = page.execute_script(READ)
    # the median of steps 75 to 85 of 1 + 1 / step; nothing had been evaluated by then
    assert (values["D_A"], values["img_per_s"], values["psnr_B"]) == ("1.012", "9", "–")
    assert len(page.find_elements(By.CSS_SELECTOR, ".cursor circle")) == len(values) - 1
    page.find_element(By.ID, "at").send_keys(Keys.HOME)
    assert page.find_element(By.ID, "at-step").text == "0"
    assert set(page.execute_script(READ).values()) == {"–"}
    chart = page.find_element(By.CSS_SELECTOR, ".chart > svg")
    ActionChains(page).move_to_element(chart).perform()
    assert 150 < int(page.find_element(By.ID, "at-step").text) < 230


def test_a_comparison_shows_of_each_run_what_was_there_by_then(show):
    page = show("comparison")
    assert page.execute_script(SHOWN) == ["400", "200", "300"]
    slider = page.find_element(By.ID, "step")
    slider.send_keys(Keys.HOME)
    assert page.execute_script(SHOWN) == ["80", "100", "100"]  # the first, where there is none yet
    for _ in range(4):
        slider.send_keys(Keys.ARROW_RIGHT)
    assert page.find_element(By.ID, "step-shown").text == "step 240"
    assert page.execute_script(SHOWN) == ["240", "200", "200"]


@pytest.mark.parametrize("name", ["hostile", "comparison"])
def test_what_looks_like_markup_stays_text(show, name):
    page = show(name)
    assert page.execute_script("return [window.taken ?? null, document.scripts.length]") == [
        None,
        2,
    ]
    text = page.execute_script("return document.body.textContent")
    assert NOT_OURS in text and "<b>three" in text
    assert page.find_elements(By.CSS_SELECTOR, "b, img[src='x']") == []


def test_a_script_that_got_in_would_not_run(driver, pages):
    """The page's policy, tried on purpose: this one fills the console."""
    driver.get(pages["one"])
    driver.execute_script(
        "const script = document.createElement('script'), image = new Image();"
        "script.textContent = 'window.taken = 4'; image.src = 'file:///x.png';"
        "document.body.append(script, image);"
    )
    assert driver.execute_script("return window.taken ?? null") is None
    told = [entry["message"] for entry in driver.get_log("browser")]
    assert len(told) == 2 and all("Content Security Policy" in line for line in told)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
@pytest.mark.parametrize("name", ["one", "hostile", "comparison"])
def test_no_screen_is_too_narrow_and_no_text_too_faint(show, name, size, dark):
    page = show(name, size, dark)
    assert page.execute_script("return document.documentElement.scrollWidth") <= size[0]
    colours = page.execute_script("""
        const of = (e, k) => getComputedStyle(e)[k], bodies = {};
        for (const e of document.querySelectorAll('p, dt, dd, th, td, h1, h2, h3, .tick, a, label'))
          bodies[of(e, e.tagName === 'text' ? 'fill' : 'color')] = 1;
        return [of(document.body, 'backgroundColor'), ...Object.keys(bodies)]""")
    paper, *inks = [luminance(colour) for colour in colours]
    assert (paper < 0.05) == dark and len(inks) >= 2
    assert min((max(paper, i) + 0.05) / (min(paper, i) + 0.05) for i in inks) >= 4.5


def luminance(colour: str) -> float:
    """Of ``rgb(r, g, b)``, relative, as WCAG 2 defines it."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", ["one", "comparison"])
def test_everything_that_acts_is_reached_by_tab_and_has_a_name(show, name):
    page = show(name)
    wanted = page.execute_script("""
        const acting = 'a[href], button:enabled, input, summary, [tabindex="0"]';
        return [...document.querySelectorAll(acting)].filter(e => e.offsetParent).length""")
    reached = set()
    for _ in range(wanted + 2):
        ActionChains(page).send_keys(Keys.TAB).perform()
        reached.add(page.switch_to.active_element.id)
    assert len(reached) >= wanted > 10
    tree = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"slider", "button", "image", "link", "progressbar", "region", "heading"}
    nodes = [n for n in tree if not n["ignored"] and n["role"]["value"] in roles]
    assert {"slider", "button", "image", "region"} <= {n["role"]["value"] for n in nodes}
    assert [n["role"]["value"] for n in nodes if not n.get("name", {}).get("value")] == []


def test_without_scripts_all_images_and_curves_are_there(driver, pages):
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.get(pages["one"])
        pictures = driver.find_elements(By.CSS_SELECTOR, ".picture")
        assert [p.is_displayed() for p in pictures] == [True] * 5
        assert not driver.find_element(By.ID, "step").is_displayed()
        assert len(driver.find_elements(By.CSS_SELECTOR, ".chart .line")) >= 12
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
