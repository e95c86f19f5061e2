"""Wheel and sdist build, hold what they should, and the wheel installs and runs the demo outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import asrkd

ROOT = Path(__file__).parents[1]
NAME = f"asrkd-{asrkd.__version__}"

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built of the sdist (so that the sdist is whole)."""
    pytest.importorskip("build", reason="the packages build and hatchling (extra test) are not installed")
    pytest.importorskip("hatchling", reason="the packages build and hatchling (extra test) are not installed")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return out


def test_the_wheel_holds_code_recipes_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        names = wheel.namelist()
        metadata = wheel.read(f"{NAME}.dist-info/METADATA").decode()
        scripts = wheel.read(f"{NAME}.dist-info/entry_points.txt").decode()
    assert {PurePosixPath(name).parts[0] for name in names} == {"asrkd", f"{NAME}.dist-info"}
    code = {f.relative_to(ROOT).as_posix() for f in (ROOT / "asrkd").rglob("*.*") if "__pycache__" not in f.parts}
    recipes = {f"asrkd/_{f.relative_to(ROOT).as_posix()}" for f in (ROOT / "recipes").rglob("*.*")}
    assert {name for name in names if name.startswith("asrkd/")} == code | recipes
    assert "asrkd/py.typed" in names
    assert "Requires-Dist: torch" in metadata and "License-Expression: Apache-2.0" in metadata
    assert "asrkd = asrkd.cli:main" in scripts


def test_the_sdist_holds_tests_and_docs_and_no_data(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as sdist:
        names = {member.name.removeprefix(f"{NAME}/"): member.size for member in sdist.getmembers()}
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "mkdocs.yml", "docs/losses.md"):
        assert name in names
    assert "tests/test_wheel.py" in names and "tools/site_hooks.py" in names
    assert {PurePosixPath(name).suffix for name in names} & {".flac", ".wav", ".safetensors", ".pt", ".gz"} == set()
    assert max(names.values()) < 1_000_000


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' folder of an environment with the wheel, in which everything that it needs is borrowed from this one."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, system_site_packages=True, with_pip=False)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    python = programs / "python"
    wheel = next(built.glob("*.whl"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps", str(wheel)]
    answer = subprocess.run(install, env=clean(), capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(ask, env=clean(), capture_output=True, text=True, check=True).stdout.strip())
    # After the wheel, and as a path only: an editable install of asrkd in this environment is not seen in the new one.
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return programs


def clean() -> dict[str, str]:
    """The environment without anything that leads back to the checkout."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}


def test_the_wheel_runs_the_demo_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    where = [str(installed / "python"), "-c", "import asrkd; print(asrkd.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=clean(), capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(installed.parent)
    for words in (["losses"], ["demo", "--fast", "--device", "cpu"]):
        command = [str(installed / "asrkd"), *words]
        answer = subprocess.run(command, cwd=tmp_path, env=clean(), capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr[-3000:]
        assert answer.stdout.strip()
    assert (tmp_path / "exp" / "demo" / "report.html").is_file()
    assert (tmp_path / "exp" / "demo" / "student_distilled" / "package" / "model.safetensors").is_file()
