"""Takes the pictures of docs/play.md in Chromium: docs/play.png of `wm play`, docs/play_phone.png of an exported page.

python scripts/page_pictures.py
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_play import serving
from playwright.sync_api import sync_playwright

from wm_agents.web.web_export import export_web

MODEL = "Dream-CarRacing-v0"
DOCS = Path(__file__).parents[1] / "docs"
STEP = 110
"""The step that is shown, at least: the dream has left reality by then."""


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is not installed")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")
        with serving(["-m", "wm_agents", "play", MODEL, "--port", "0"]) as url:
            take(page, url, "#at", DOCS / "play.png")
        export_web(MODEL, Path(folder) / "out")
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
        command = ["-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(Path(folder) / "out")]
        with serving(command) as url:
            take(page, url, "#dream-state", DOCS / "play_phone.png")
        browser.close()


def take(page: Any, url: str, place: str, path: Path) -> None:
    """Let the shipped policy act, and take the picture at `STEP`, which the page shows at `place`."""
    page.set_default_timeout(90_000)
    page.goto(f"http://{url}/")
    page.get_by_role("radio").nth(1).click()
    while int("".join(filter(str.isdigit, page.inner_text(place).split("·")[0])) or 0) < STEP:
        page.wait_for_timeout(50)
    page.click("#pause")
    page.wait_for_timeout(500)
    page.screenshot(path=path)
    page.goto("about:blank")


if __name__ == "__main__":
    main()
