"""Lets atheris choose the values of the fuzzing tests. It keeps each input that reaches new code, to change it further.

    pip install atheris==3.0.0
    python -m tests.guided --minutes 60 -o inputs

Every test gets its share of the minutes, in a process of its own. The folder holds the inputs of each test that reached
new code, from which the next run continues. An input that fails a test, or takes five minutes, is kept there too, as
``crash-...`` or ``timeout-...``, and the command ends with exit code 1. Inputs belong to the version of hypothesis that
made them.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

INPUTS = "INFGEN_FUZZ_INPUTS"
"""The variable with the folder of a test's inputs. Where it is set, atheris chooses the values."""
TARGETS = (
    "tests/rt/test_fuzz.py::test_changed_files",
    "tests/rt/test_fuzz.py::test_changed_headers_of_safetensors",
    "tests/rt/test_fuzz.py::test_arrays_of_any_shape_and_kind",
    "tests/rt/test_fuzz.py::test_changed_manifests",
    "tests/rt/test_fuzz.py::test_changed_zips",
    "tests/rt/test_fuzz.py::test_options_of_any_text",
    "tests/rt/test_fuzz.py::test_plans_of_any_values",
    "tests/rt/test_fuzz.py::test_any_float_arrays",
    "tests/rt/test_fuzz_requests.py::test_changed_manifests_of_several_models",
    "tests/rt/test_fuzz_requests.py::test_options_together",
    "tests/rt/test_fuzz_requests.py::test_any_metadata",
    "tests/rt/test_fuzz_requests.py::test_latents_of_any_statistics",
    "tests/export/test_checkpoint.py::test_changed_checkpoints_are_read_or_refused",
)
"""All fuzzing tests. They share the minutes of a long run."""


def choose(body: Callable[[bytes], object], minutes: float) -> None:
    """Calls a function with inputs that atheris chooses. It ends the process, with exit code 0 if no call failed."""
    import atheris

    folder = Path(os.environ[INPUTS])
    limits = [f"-max_total_time={max(1, round(60 * minutes))}", "-timeout=300", "-rss_limit_mb=6000", "-len_control=0"]
    arguments = [sys.argv[0], *limits, "-print_final_stats=1", f"-artifact_prefix={folder}/", str(folder)]
    atheris.Setup(arguments, body)
    atheris.Fuzz()


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Instruments our packages before anything imports them. This file is then a plugin of pytest."""
    import atheris

    # It is never left, because some modules are imported when they are first needed.
    atheris.instrument_imports(include=["infgen_rt", "infgen_model", "infgen_runtimes"]).__enter__()


@click.command()
@click.option("--minutes", default=60.0, show_default=True, help="Length of the run.")
@click.option("--only", default="", help="Part of the names of the tests to run. Default: all.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(minutes: float, only: str, output: Path) -> None:
    """Runs the fuzzing tests one after another. The output is the folder of the inputs."""
    targets = [target for target in TARGETS if only in target]
    if not targets:
        raise click.BadParameter(f"no test's name has {only!r} in it", param_hint="--only")
    failed = []
    for target in targets:
        name = target.rpartition("::")[2]
        folder = output.resolve() / name
        folder.mkdir(parents=True, exist_ok=True)
        shares = {INPUTS: str(folder), "INFGEN_FUZZ_MINUTES": str(minutes / len(targets)), "OMP_NUM_THREADS": "1"}
        # Both time limits need the same signal, so pytest's is switched off.
        plain = ["-s", "--numprocesses", "0", "--timeout", "0"]
        command = [sys.executable, "-m", "pytest", "-p", "tests.guided", *plain, target]
        result = subprocess.run(command, env=os.environ | shares, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        (folder.parent / f"{name}.log").write_bytes(result.stdout)
        lines = result.stdout.decode(errors="replace").splitlines()
        runs = [line for line in lines if line.startswith("Done ")]
        # Without instrumented code, atheris finds nothing new and reports success all the same.
        guided = any("DONE" in line and "cov:" in line for line in lines)
        done = not result.returncode and guided and runs
        click.echo(f"{name}: {runs[-1] if done else f'failed, see {name}.log'}")
        if not done:
            failed.append(name)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
