import subprocess
import sys


def test_import_pulls_in_nothing_heavy() -> None:
    code = "import infgen_rt, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "torch",
        "onnxruntime",
        "onnx",
        "PIL",
        "tifffile",
        "click",
        "safetensors",
        "ml_dtypes",
        "openvino",
        "ray",
        "infgen_runtimes",
    }
    assert "infgen_rt.decoder" in modules
    assert heavy.isdisjoint(modules)


def test_the_public_names_are_there() -> None:
    import infgen_rt

    assert all(hasattr(infgen_rt, name) for name in infgen_rt.__all__)


def test_public_modules_are_there_after_the_package_alone_is_imported() -> None:
    code = "import infgen_rt; infgen_rt.spaces.space_of; infgen_rt.viewing.TileReader"
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
