"""The page in a browser: two widths, light and dark, and what it says there."""

import json
import os
import pathlib
import re
import shutil
import subprocess

import comparison_made as made
import numpy as np
import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    BROWSER is None, reason="no Chromium: apt-get install chromium"
  ),
]
# Where screenshots are kept; by default they go with the test's folder.
KEPT = os.environ.get("JAXPRUNE_SCREENSHOTS")
WIDTHS = (1280, 390)
HEIGHT = 900
SCHEMES = {"dark": 0, "light": 1}  # of Blink's preferredColorScheme

# A frame of the width of a phone, which a window cannot have.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><style>body {{ margin: 0 }}
iframe {{ border: 0; width: {width}px; height: {height}px }}</style>
<iframe src="{page}"></iframe>"""
# What a reader would find in it.
READER = """<script>
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const found = { width: root.scrollWidth, height: root.scrollHeight };
  const all = (query) => [...page.querySelectorAll(query)];
  const tip = () => page.querySelector("#tip");
  found.chooser = !page.querySelector(".chooser").hidden;
  all(".text .t")[1].click();
  found.tip = tip().hidden ? "" : tip().textContent;
  page.dispatchEvent(new frame.contentWindow.KeyboardEvent("keydown",
    { key: "Escape" }));
  found.closed = tip().hidden;
  page.querySelector(".panel a").dispatchEvent(
    new frame.contentWindow.MouseEvent("click", { bubbles: true,
      cancelable: true }));
  found.held = page.querySelector(".held").id;
  const select = page.querySelector(".chooser select");
  select.value = "text-2";
  select.dispatchEvent(new Event("change"));
  found.first = page.querySelector(".text").id;
  const pre = document.createElement("pre");
  pre.id = "found";
  pre.textContent = JSON.stringify(found);
  document.body.append(pre);
};
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  folder = tmp_path_factory.mktemp("browser") / "out"
  tables = made.tables()
  tasks = {"choose": made.task(95, 94, 0.25), "generate": made.task(90, 20)}
  made.write(folder, tables, made.summary(tables, tasks))
  return folder / "report.html"


def open_page(page, folder, width, *options, script=""):
  """What the browser prints of the page in a frame of some width."""
  frame = folder / f"frame-{width}.html"
  shown = FRAME.format(width=width, height=HEIGHT, page=page.as_uri())
  frame.write_text(shown + script)
  done = subprocess.run(
    [
      BROWSER,
      *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
      *("--disable-dev-shm-usage", "--enable-logging=stderr"),
      *("--allow-file-access-from-files", "--virtual-time-budget=5000"),
      f"--user-data-dir={folder / 'profile'}",
      f"--window-size={width},{HEIGHT}",
      *options,
      frame.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
  assert not said, said
  return done.stdout


@pytest.mark.parametrize("width", WIDTHS)
def test_a_reader_finds_everything(page, tmp_path, width):
  text = open_page(page, tmp_path, width, "--dump-dom", script=READER)
  found = json.loads(re.search('<pre id="found">(.*?)</pre>', text)[1])
  assert found["width"] == width  # nothing stands out at the side
  assert found["height"] < (7000 if width < 600 else 4500)
  assert found["chooser"] and found["first"] == "text-2"
  assert found["tip"].startswith("KL ") and "pruned: " in found["tip"]
  assert found["closed"] and found["held"] == "t0-0"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_screenshots(page, tmp_path, width, scheme):
  folder = pathlib.Path(KEPT) if KEPT else tmp_path
  folder.mkdir(parents=True, exist_ok=True)
  picture = folder / f"comparison-{width}-{scheme}.png"
  open_page(
    page,
    tmp_path,
    width,
    f"--screenshot={picture}",
    f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
  )
  pixels = np.asarray(Image.open(picture).convert("L"), float)
  assert pixels.shape[0] >= HEIGHT * 0.8 and pixels.std() > 5
  corner = pixels[2, 2]
  assert corner > 240 if scheme == "light" else corner < 40
