"""Freezes the command line, and compares what it decodes in an empty environment with what this environment decodes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import infgen_rt

SAMPLE, SIZE, LIMIT = "osprey", (480, 272), 1800

began = time.monotonic()
script, folder = Path(sys.argv[1]), Path(sys.argv[2])
places = ["--distpath", str(folder / "dist"), "--workpath", str(folder / "build"), "--specpath", str(folder)]
subprocess.run(
    [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR", *places, str(script)],
    check=True,
    timeout=LIMIT,
)
seconds = time.monotonic() - began

app = folder / "dist" / script.stem / script.stem
picture = folder / "frozen.png"
empty = {"PATH": "", "INFGEN_RT_CACHE": str(folder / "cache")} | {
    name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The app's own run, in a folder and an environment without Python."""
    return subprocess.run([app, *arguments], cwd=folder, env=empty, capture_output=True, text=True, timeout=LIMIT)


decoding = ["decode", "--sample", SAMPLE, "--size", f"{SIZE[0]}x{SIZE[1]}"]
result = run(*decoding, "-o", str(picture))
assert result.returncode == 0, result.stderr
with infgen_rt.open() as decoder:
    expected = decoder.picture(infgen_rt.load_sample(SAMPLE).latent, SIZE).read()
worst = np.abs(np.asarray(Image.open(picture)).astype(int) - expected).max()
assert worst <= 1, f"the frozen app's picture differs by {worst} levels"

# What it says of what it lacks is true: pip cannot add anything to it.
for arguments in (["view"], [*decoding, "-o", "none.png", "--backend", "torch"]):
    result = run(*arguments)
    assert result.returncode == 2 and "app was built without it" in result.stderr, (arguments, result.stderr)
    assert "pip" not in result.stderr, result.stderr

size = sum(file.stat().st_size for file in app.parent.rglob("*") if file.is_file() and not file.is_symlink())
print(f"frozen app works: {size / 2**20:.0f} MiB in its folder, built in {seconds:.0f} s")
