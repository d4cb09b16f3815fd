"""The page in headless Chromium: upload, click, slide, stop, a text file renamed, a narrow screen, the keyboard."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium and its driver (chromium, chromium-driver)"),
]
pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
ui = pytest.importorskip("selenium.webdriver.support.ui")
ID, CSS = "id", "css selector"


@pytest.fixture(scope="module")
def address(segmenter, photo, tmp_path_factory):
    """A server as a user starts it; at the end it is stopped by Ctrl-C, and nothing may be left."""
    folder = tmp_path_factory.mktemp("server")
    environment = {**os.environ, "TMPDIR": str(folder)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    program = "import sys; from castvision_cli import main; sys.exit(main())"
    arguments = [str(photo), "--model", "vit_tiny_patch16_224", "--segmenter", str(segmenter), "--max-upload", "2"]
    command = [sys.executable, "-u", "-c", program, "demo", "--web", *arguments]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        printed = server.stdout.readline() + server.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", printed)
        assert found, printed + server.stdout.read()
        assert "random weights: what it shows means nothing" in printed
        yield found.group()
        server.send_signal(signal.SIGINT)
        rest, _ = server.communicate(timeout=60)
    assert server.returncode == 130
    assert "Traceback" not in rest
    assert [path for path in folder.rglob("*") if path.is_file()] == []


class Page:
    """A browser with the page, and what the tests do there."""

    def __init__(self, address, width=1200):
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for each in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
            options.add_argument(each)
        options.add_argument(f"--window-size={max(width, 500)},1000")
        if width < 500:
            metrics = {"width": width, "height": 844, "pixelRatio": 1}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(executable_path=DRIVER)
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.get(address)
        self.until(lambda: self.find("#features_show"))
        time.sleep(1)  # the page comes alive after it is drawn, which nothing tells

    def find(self, css):
        return self.driver.find_elements(CSS, css)

    def until(self, condition):
        return ui.WebDriverWait(self.driver, 120).until(lambda _: condition())

    @property
    def status(self):
        return self.driver.find_element(ID, "status").text

    def upload(self, path):
        if self.find("#upload [aria-label='Clear']"):
            self.driver.execute_script("arguments[0].click()", self.find("#upload [aria-label='Clear']")[0])
        self.until(lambda: self.find("#upload input[type=file]"))
        self.find("#upload input[type=file]")[0].send_keys(str(path))

    def press(self, name):
        button = self.driver.find_element(ID, name)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def tab(self, name):
        shown = [each for each in self.find("button[role=tab]") if each.text == name and each.is_displayed()]
        if not shown:  # a narrow screen has the others in a menu
            self.find(".overflow-menu button")[0].click()
            shown = [each for each in self.find(".overflow-dropdown button") if each.text == name]
        shown[0].click()

    def source(self, name):
        found = self.find(f"#{name} img")
        return found[0].get_attribute("src") if found else None

    def click(self, name, across, down):
        picture = self.driver.find_element(CSS, f"#{name} img")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
        time.sleep(0.3)
        size = picture.size
        where = int((across - 0.5) * size["width"]), int((down - 0.5) * size["height"])
        webdriver.ActionChains(self.driver).move_to_element_with_offset(picture, *where).click().perform()

    def slide(self, name, value):
        field = self.driver.find_element(CSS, f"#{name} input[type=number]")
        keys = webdriver.Keys
        field.send_keys(keys.CONTROL, "a")
        field.send_keys(keys.NULL, str(value), keys.TAB)

    def requests(self):
        found = [json.loads(each["message"])["message"] for each in self.driver.get_log("performance")]
        sent = [each["params"] for each in found if each["method"] == "Network.requestWillBeSent"]
        return {each["request"]["url"] for each in sent}


@pytest.fixture
def page(address):
    page = Page(address)
    yield page
    page.driver.quit()


def test_every_tab_with_one_upload_and_no_request_elsewhere(page, address, photo):
    page.upload(photo)
    page.until(lambda: page.status == "cat.png: 200 × 280 pixels")
    page.press("features_show")
    page.until(lambda: page.source("features_colours"))
    assert "12 × 18 tokens" in page.status
    page.click("features_colours", 0.97, 0.97)
    page.until(lambda: page.source("features_heat"))
    assert "row 11, column 17" in page.status

    page.tab("Clusters")
    page.press("clusters_show")
    page.until(lambda: page.source("clusters_overlay"))
    page.click("clusters_overlay", 0.5, 0.5)
    page.until(lambda: page.find("#clusters_weights table"))
    first, lit = page.source("clusters_overlay"), page.source("clusters_lit")
    page.slide("clusters_layer", 11)
    # typed digit by digit: layer 1 is shown on the way to 11
    page.until(lambda: "blocks.10" in page.driver.find_element(ID, "clusters_weights").text)
    page.until(lambda: page.source("clusters_overlay") != first and page.source("clusters_lit") != lit)

    page.tab("Segment")
    page.press("segment_show")
    page.until(lambda: page.find("#segment_areas table"))
    assert "<b>road</b>" in page.driver.find_element(ID, "segment_areas").text  # as text
    assert len(page.find("#segment_slider img")) == 2

    page.tab("Big image")
    page.press("big_show")
    page.until(lambda: page.source("big_picture"))

    page.tab("Compare")
    page.press("compare_show")
    page.until(lambda: page.find("#compare_table table"))
    assert "variance unexplained" in page.driver.find_element(ID, "compare_table").text

    elsewhere = [url for url in page.requests() if not url.startswith((address, "data:", "blob:", "chrome"))]
    assert elsewhere == []
    assert [each for each in page.driver.get_log("browser") if each["level"] == "SEVERE"] == []


def test_bad_uploads_are_told_in_one_line_and_the_page_goes_on(page, photo, text, cut, tmp_path):
    page.upload(text)
    page.until(lambda: "words.png" in page.status)
    assert page.find("#status [role=alert]")
    assert "\n" not in page.status
    page.upload(cut)
    page.until(lambda: "cut.png" in page.status)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)).save(tmp_path / "large.png")
    page.upload(tmp_path / "large.png")  # 3 MB of 2
    page.until(lambda: "large" in page.driver.find_element(CSS, "body").text.lower())
    assert "1000 × 1000" not in page.status
    page.upload(photo)
    page.until(lambda: page.status == "cat.png: 200 × 280 pixels")


def test_stop_ends_a_long_run(page, tmp_path):
    Image.fromarray(np.zeros((1600, 1600, 3), np.uint8)).save(tmp_path / "black.png")
    page.upload(tmp_path / "black.png")
    page.until(lambda: "1600" in page.status)
    page.tab("Big image")
    page.slide("big_tile", 256)
    page.press("big_show")
    time.sleep(2)
    page.press("big_stop")
    page.until(lambda: "stopped after" in page.status)


def test_all_of_it_by_the_keyboard(page):
    keys, driver = webdriver.Keys, page.driver

    def go_to(css):
        for _ in range(60):
            here = driver.switch_to.active_element
            if here.get_attribute("id") and here in page.find(css):
                return here
            if here in page.find(css):
                return here
            here.send_keys(keys.TAB)
        raise AssertionError(f"{css} is not reached by Tab")

    go_to("#example input").send_keys(keys.ARROW_DOWN, keys.ENTER)
    page.until(lambda: "cat.png" in page.status)
    driver.execute_script("document.activeElement.blur()")
    go_to("#features_show").send_keys(keys.ENTER)
    page.until(lambda: page.source("features_colours"))
    go_to("button.label-wrap").send_keys(keys.ENTER)
    time.sleep(1)
    go_to("#features_point").send_keys(keys.ENTER)
    page.until(lambda: page.source("features_heat"))
    assert "row 6, column 9" in page.status


def test_a_narrow_screen_scrolls_one_way_only(address, photo):
    page = Page(address, width=390)
    try:
        page.upload(photo)
        page.until(lambda: "cat.png" in page.status)
        for name, button, shown in (
            ("Features", "features_show", "#features_colours img"),
            ("Clusters", "clusters_show", "#clusters_overlay img"),
            ("Segment", "segment_show", "#segment_areas table"),
            ("Compare", "compare_show", "#compare_table table"),
        ):
            page.tab(name)
            page.press(button)
            page.until(lambda css=shown: page.find(css))
            assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        page.driver.quit()


def test_answers_forbid_other_hosts_and_caches(address):
    with urllib.request.urlopen(address) as answer:
        policy = answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'self'" in policy
    assert "http" not in policy
