"""A small spoken_numbers corpus, made once for the session, and where real data is, if it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before torch is imported anywhere: small tensors gain nothing from threads, and tests run beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from asrkd.data.librispeech import prepare_librispeech
from asrkd.data.spoken_numbers import synthesise


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems() -> None:
    """Once the test files are imported, hypothesis asks for the first time."""
    name_lazy_modules()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Tests import more."""
    name_lazy_modules()


def name_lazy_modules() -> None:
    """Answer for SpeechBrain's lazy modules where hypothesis asks every module for its file.

    Those for packages that are not installed (k2, ...) answer any question by raising ImportError.
    """
    for module in list(sys.modules.values()):
        if type(module).__module__ == "speechbrain.utils.importutils":
            module.__dict__.setdefault("__file__", None)


SIZES = {"train_minutes": 1.5, "dev_minutes": 0.3, "test_minutes": 0.3}


@pytest.fixture(scope="session")
def sizes() -> dict[str, float]:
    """Minutes of the parts of the small corpus."""
    return SIZES


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio in LibriSpeech's layout."""
    return synthesise(tmp_path_factory.mktemp("spoken") / "audio", seed=3, **SIZES)


@pytest.fixture(scope="session")
def prepared(spoken: Path) -> Path:
    """The same, prepared."""
    return prepare_librispeech(spoken, spoken.parent / "corpus").folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of reference data: $ASRKD_TEST_DATA, or ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("ASRKD_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no reference data: {folder} is not there (set ASRKD_TEST_DATA)")
    return folder
