"""examples/web: built, and visited by headless Chromium, the page says what Python says."""

import functools
import http.server
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import stompp_kernels as sk
from stompp_kernels.training.data import load

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,  # compiles the library and trains two networks
    pytest.mark.skipif(
        importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed: `make test-wasm` installs it"
    ),
]
SECONDS = 120
MOST_BYTES, MOST_WASM_BYTES = 1_000_000, 600_000


class Visit(http.server.SimpleHTTPRequestHandler):
    """Serves the page and visit.html beside it, and takes the report."""

    def do_GET(self):
        if self.path != "/visit.html":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write((ROOT / "tests" / "web" / "visit.html").read_bytes())
        return None

    def do_POST(self):
        self.server.report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.reported.set()

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    subprocess.run([sys.executable, ROOT / "examples" / "web" / "build.py", folder, "--epochs", "4"], check=True)
    return folder


@pytest.fixture(scope="module")
def report(page, tmp_path_factory):
    """What the page said to a visitor, and the lines of the browser's console."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: `make setup-chromium` installs it on Debian and Ubuntu")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Visit, directory=page))
    server.reported = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    profile = tmp_path_factory.mktemp("profile")
    log = profile / "log.txt"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--window-size=800,1000"]
    with log.open("w") as stream:
        address = f"http://127.0.0.1:{server.server_port}/visit.html"
        browser = subprocess.Popen([CHROMIUM, *options, address], stdout=stream, stderr=stream)
        try:
            assert server.reported.wait(SECONDS), log.read_text()[-4000:]
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
    console = [line for line in log.read_text().splitlines() if ":CONSOLE" in line]
    return {**server.report, "console": console}


@pytest.mark.parametrize("network", ["packed", "float"])
def test_the_page_says_what_python_says(page, report, network):
    assert "failure" not in report, report
    data = load("digits")
    packed = sk.load_packed(page / f"{network}.safetensors")
    for what in ("example", "drawn", "cleared", "typed"):
        said = report[what]
        x = (torch.tensor(said["pixels"], dtype=torch.float32).view(1, 1, 8, 8) - data.mean) / data.std
        with torch.no_grad():
            expected = packed(x)[0]
        torch.testing.assert_close(torch.tensor(said[network]), expected, rtol=1e-5, atol=1e-5)
        assert said["digits"][network == "float"] == str(int(expected.argmax())), what


def test_the_page_works_without_a_complaint(report):
    assert report["console"] == []
    assert "kernels “wasm”" in report["status"]
    assert report["layers"] >= 10
    assert report["pictures"] >= 8
    assert all(0 < milliseconds < 1000 for milliseconds in report["milliseconds"])


def test_drawing_makes_images(report):
    assert sum(report["cleared"]["pixels"]) == 0
    for what in ("drawn", "typed"):
        rows = torch.tensor(report[what]["pixels"]).view(8, 8)
        assert rows[:, 3:5].sum() == rows.sum() > 100, "an upright line is in the middle"


def test_the_page_fits_a_phone(report):
    assert report["width"] <= 390


def test_the_page_is_small(page):
    assert (page / "stompp.wasm").stat().st_size <= MOST_WASM_BYTES
    assert sum(path.stat().st_size for path in page.iterdir()) <= MOST_BYTES
