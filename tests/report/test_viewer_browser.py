"""The viewer in a real browser: slider, mouse wheel, switches, links from the table, and a phone's width."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from competition.report.run import write_report

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="the page is looked at with selenium: pip install selenium"
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="no chromium with its chromedriver here: apt-get install chromium-driver",
    ),
]

PIXELS = """const canvas = document.getElementById('viewer-canvas');
            const values = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            let sum = 0;
            for (const value of values) { sum = (sum * 31 + value) % 1000003; }
            return sum"""


@pytest.fixture
def browser() -> Iterator[Callable[..., Any]]:
    """`browser(page, phone=True)`: the page in Chromium without a screen."""
    opened = []

    def start(page: Path, phone: bool = False) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
            options.add_argument(word)
        options.add_argument("--window-size=1200,1000")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        if phone:
            metrics = {"width": 390, "height": 844, "pixelRatio": 2.0}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics, "userAgent": "phone"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        opened.append(driver)
        driver.set_page_load_timeout(300)
        driver.get(page.resolve().as_uri())
        assert driver.get_log("browser") == [], "the page's policy admits its script, and the script has no error"
        return driver

    yield start
    for driver in opened:
        driver.quit()


@pytest.fixture
def page(made: Callable[..., Any], tiny: Callable[..., Any]) -> Path:
    run = made(tiny(3), noise=0.5)
    return write_report(run, run.folder / "report.html")


def settle(driver: Any, script: str, before: object) -> object:
    """Return the result of a script once it differs from `before`, or after a time."""
    for _ in range(50):
        if (found := driver.execute_script(script)) != before:
            return found
        time.sleep(0.2)
    return driver.execute_script(script)


def test_slider_wheel_switches_and_links(page: Path, browser: Callable[..., Any]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    driver = browser(page)
    canvas = driver.find_element("id", "viewer-canvas")
    driver.execute_script("arguments[0].scrollIntoView()", canvas)
    place = "return [document.getElementById('viewer-slice').value, scrollY]"
    at, scrolled = driver.execute_script(place)
    ActionChains(driver).scroll_from_origin(ScrollOrigin.from_element(canvas), 0, -120).perform()
    moved = settle(driver, place, [at, scrolled])
    assert moved == [str(int(at) - 1), scrolled], "the wheel changes the slice and does not scroll the page"
    pixels = driver.execute_script(PIXELS)
    driver.execute_script(
        "const slider = document.getElementById('viewer-slice'); slider.value = arguments[0];"
        "slider.dispatchEvent(new Event('input'))",
        at,
    )
    pixels = settle(driver, PIXELS, pixels)
    for name in ("truth", "prediction"):
        driver.find_element("id", f"viewer-{name}").click()
        without = settle(driver, PIXELS, pixels)
        assert without != pixels, name
        pixels = without
    link = driver.find_elements("css selector", "a[data-case]")[2]
    name = link.text
    link.click()
    chosen = "return document.getElementById('viewer-case').selectedOptions[0].textContent"
    assert str(settle(driver, chosen, None)).startswith(f"{name} · ")


def test_a_phone_shows_the_page_without_scrolling_sideways(page: Path, browser: Callable[..., Any]) -> None:
    driver = browser(page, phone=True)
    width, room = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= room == 390
    # short words in a table stay on one line; the table scrolls instead
    heights = driver.execute_script(
        "return [...document.querySelectorAll('#folds td.word, #cases td.word')].map("
        "cell => [cell.textContent, cell.getBoundingClientRect().height])"
    )
    assert len(heights) > 10 and not [text for text, height in heights if height > 60]
