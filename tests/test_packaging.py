"""The package that is installed is the one in the repository, under its own names."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import graphnet

LIST_MODULES = "import json, sys; import graphnet; print(json.dumps(sorted(sys.modules)))"


@pytest.fixture(scope="module")
def project(root: Path) -> Mapping[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


def test_every_package_on_disk_is_listed(project: Mapping[str, Any], sources: Mapping[str, Path]) -> None:
    on_disk = sorted(name for name, path in sources.items() if path.name == "__init__.py")
    listed = list(project["tool"]["setuptools"]["packages"])
    wanted = f"packages = {json.dumps(on_disk, indent=4)}"
    assert listed == on_disk, f"in pyproject.toml, [tool.setuptools], write\n{wanted}"


def test_every_module_lies_in_a_package(sources: Mapping[str, Path]) -> None:
    """A folder without `__init__.py` imports from source and is missing from the wheel."""
    lost = [str(path) for path in sources.values() if not (path.parent / "__init__.py").is_file()]
    assert not lost, f"these files lie in folders without an __init__.py: {lost}"


def test_the_two_root_folders_are_mapped(project: Mapping[str, Any], root: Path) -> None:
    folders = project["tool"]["setuptools"]["package-dir"]
    assert folders == {"graphnet.schemas": "schemas", "graphnet.compilers": "compilers"}
    assert not (root / "graphnet" / "schemas").exists()
    assert not (root / "graphnet" / "compilers").exists()


@pytest.mark.parametrize("name", ["schemas", "compilers"])
def test_root_folders_refuse_to_be_top_level_packages(name: str, root: Path) -> None:
    wrong = run_python(f"import {name}", cwd=root)
    assert wrong.returncode != 0
    assert f"ImportError: import graphnet.{name}" in wrong.stderr
    right = run_python(f"import graphnet.{name}", cwd=root)
    assert right.returncode == 0, right.stderr


@pytest.mark.parametrize("name", ["graphnet", "graphnet.schemas", "graphnet.compilers"])
def test_importable_from_anywhere(name: str, tmp_path: Path) -> None:
    done = run_python(f"import {name}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_versions_agree(project: Mapping[str, Any], root: Path) -> None:
    version = project["project"]["version"]
    assert graphnet.__version__ == version
    assert importlib.metadata.version("graphnet-engine") == version, "installed from elsewhere: run make test"
    assert f"## {version}" in (root / "CHANGELOG.md").read_text(encoding="utf-8")


def test_importing_the_package_loads_no_extra(tmp_path: Path) -> None:
    done = run_python(LIST_MODULES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    extras = {"matplotlib", "pyarrow", "sklearn", "scipy", "transformers", "onnx", "hypothesis", "pytest"}
    assert not extras & set(json.loads(done.stdout))


def test_what_set_up_installs_is_pinned(project: Mapping[str, Any], root: Path) -> None:
    """Each requirement of `make study` and `make test` has an exact version, and no index or address."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin and "+" not in pin and "/" not in pin for pin in pins)
    pinned = {normal(pin) for pin in pins}
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *extras["study"], *extras["dev"]]
    assert {normal(requirement) for requirement in wanted} <= pinned


def normal(requirement: str) -> str:
    """Return the normalized name of a requirement: `PyYAML>=6` is `pyyaml`."""
    name = requirement
    for sign in "[<>=!~; ":
        name = name.split(sign)[0]
    return name.lower().replace("_", "-").replace(".", "-")
