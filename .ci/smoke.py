"""What an app that installs the wheel does, away from the repository."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

import infgen_rt

assert find_spec("torch") is None, "torch is installed: this is not the environment that was meant"
assert "site-packages" in infgen_rt.__file__, "imported from somewhere else than the installed wheel"

names = infgen_rt.sample_names()
assert len(names) == 3, names
command = [str(Path(sys.executable).with_name("infgen-rt")), "decode", "--size", "1001x777", "--json"]
for name in names:
    result = subprocess.run(
        [*command, "--sample", name, "-o", f"{name}.png"], capture_output=True, text=True, check=True
    )
    report = json.loads(result.stdout)
    pixels = np.asarray(Image.open(f"{name}.png"))
    assert pixels.shape == (777, 1001, 3) and report["backend"]["name"] == "onnxruntime", (pixels.shape, report)
    assert pixels.std() > 20, f"{name} shows nothing"
    with infgen_rt.open() as decoder:
        part = decoder.picture(infgen_rt.load_sample(name).latent, (1001, 777)).read((300, 200, 99, 101))
    worst = np.abs(part.astype(int) - pixels[200:301, 300:399]).max()
    assert worst <= 1, f"{name}: a region differs from the whole by {worst} levels"
print(f"wheel works: {infgen_rt.__version__}, samples {', '.join(names)}")
