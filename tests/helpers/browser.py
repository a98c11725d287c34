"""A headless Chromium for the tests of pages, from the distribution's packages `chromium` and `chromium-driver`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

SWITCHES = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()


@contextmanager
def open_browser(profile: Path, width: int = 1400, height: int = 1000) -> Iterator[Chrome]:
    """Open a browser with a new profile; skip the test with a message if no Chromium is installed."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium and chromedriver here: install the packages chromium and chromium-driver")
    options = ChromeOptions()
    options.binary_location = browser
    for switch in (*SWITCHES, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def console_errors(chrome: Chrome) -> list[str]:
    """The errors in the page's console since the last call."""
    return [entry["message"] for entry in chrome.get_log("browser") if entry["level"] == "SEVERE"]


def texts_of(chrome: Chrome, selector: str) -> list[str]:
    """The text of each element that a CSS selector finds, read in one step, as a page may replace them."""
    script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.innerText)"
    texts: list[str] = chrome.execute_script(script, selector)
    return texts
