"""The page of `infgen-rt serve`, in a headless Chromium with the OpenSeadragon that it names."""

import base64
import hashlib
import json
import re
import subprocess
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import infgen_rt
from infgen_rt.viewing.server import TileServer

from .test_web import CHROMIUM, WEB, in_chromium

OPENSEADRAGON = WEB / "node_modules" / "openseadragon" / "build" / "openseadragon" / "openseadragon.min.js"
HEADER = 33  # pixels of the page's height


def test_the_page_names_the_version_that_is_tested() -> None:
    page = files("infgen_rt").joinpath("data/tiles.html").read_text(encoding="utf-8")
    lock = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))
    version = lock["packages"]["node_modules/openseadragon"]["version"]
    source = re.findall(r'https://cdn\.jsdelivr\.net/npm/openseadragon@([\d.]+)/(\S+)"', page)
    assert source == [(version, "build/openseadragon/openseadragon.min.js")]
    if OPENSEADRAGON.exists():
        digest = base64.b64encode(hashlib.sha384(OPENSEADRAGON.read_bytes()).digest()).decode()
        assert f'integrity="sha384-{digest}"' in page


def opened(server: TileServer, screenshot: Path, *options: str) -> dict[str, Any]:
    """What the page says in Chromium."""
    command = ["node", "test/tiles.mjs", str(CHROMIUM), server.address, str(screenshot), *options]
    done = subprocess.run(command, cwd=WEB, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@in_chromium
@pytest.mark.slow
def test_the_page_shows_the_picture_and_says_what_is_missing(tmp_path: Path) -> None:
    latent = infgen_rt.load_sample("osprey").latent[:, 10:50, 30:90]
    with infgen_rt.open(backend="onnxruntime") as decoder:
        picture = decoder.picture(latent, "1x", normalisation="model")  # 480x320
        expected = picture.image()
        with TileServer([picture], title="latent.npy") as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                found = opened(server, tmp_path / "page.png")
                missing = opened(server, tmp_path / "missing.png", "offline")
            finally:
                server.shutdown()
                thread.join()
    assert (found["state"], found["problem"]) == ("What is seen is complete.", "")
    assert len(found["outside"]) == 1  # OpenSeadragon, and nothing else
    assert missing["problem"].startswith("OpenSeadragon cannot be loaded")
    # The picture fills the height of the view, which is below the page's header.
    shown = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))[HEADER:, 40:920]
    enlarged = expected.resize(((640 - HEADER) * 3 // 2, 640 - HEADER))
    left = (960 - enlarged.width) // 2
    part = np.asarray(enlarged)[:, 40 - left : 920 - left]
    assert np.corrcoef(shown.ravel(), part.ravel())[0, 1] > 0.95
