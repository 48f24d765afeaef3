"""What every test shares: hypothesis profiles, one torch thread, the list of the package's source files."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

ROOT = Path(__file__).resolve().parent.parent
SOURCE_FOLDERS = {"graphnet": "graphnet", "graphnet.schemas": "schemas", "graphnet.compilers": "compilers"}

torch.set_num_threads(1)

# No deadline: the first example of a test pays for imports and for torch's warm-up.
_SHARED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("default", parent=_SHARED, max_examples=30)
settings.register_profile("ci", parent=_SHARED, max_examples=60, derandomize=True)
# Of mutation testing: a fault that only rare examples show is to survive, and what they shrink to is of no interest.
settings.register_profile(
    "few", parent=_SHARED, max_examples=10, derandomize=True, phases=(Phase.explicit, Phase.generate)
)
settings.register_profile("long", parent=_SHARED, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@lru_cache(maxsize=1)
def source_files() -> dict[str, Path]:
    """Return every module of the package, by the name it is imported under, with its file."""
    files: dict[str, Path] = {}
    for package, folder in SOURCE_FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            files[".".join([package, *parts])] = path
    return files


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes `source_module` one case for every module of the package."""
    if "source_module" in metafunc.fixturenames:
        metafunc.parametrize("source_module", sorted(source_files()))


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def sources() -> dict[str, Path]:
    """Return every module of the package, by the name it is imported under, with its file."""
    return source_files()
