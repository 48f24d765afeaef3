from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from graphnet.errors import SchemaError
from graphnet.schemas.catalog import DOCUMENTS, json_schema
from graphnet.schemas.generate import FOLDER, main, render, stale


def test_the_committed_files_are_current() -> None:
    assert stale() == [], "run: python -m graphnet.schemas.generate"


def test_every_file_belongs_to_a_kind_of_document() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{kind}.schema.json" for kind in DOCUMENTS}


def test_writing_and_checking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "json"
    arguments = ["--folder", str(folder)]
    assert main([*arguments, "--check"]) == 1
    assert not folder.exists()
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    (folder / "policy.schema.json").write_text("{}", encoding="utf-8")
    capsys.readouterr()
    assert main([*arguments, "--check"]) == 1
    assert capsys.readouterr().out == f"out of date: {folder / 'policy.schema.json'}\n"


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_schema_forbids_unknown_keys_and_resolves(kind: str) -> None:
    schema = json_schema(kind)
    assert schema["additionalProperties"] is False
    text = render(kind)
    assert json.loads(text) == schema
    for part in text.split('"#/$defs/')[1:]:
        assert part.split('"')[0] in schema["$defs"]


def test_plain_forms_are_in_the_schema() -> None:
    grow = json_schema("policy")["$defs"]["Grow"]["properties"]
    assert {"type": "number"} in grow["count"]["anyOf"]
    assert {"type": "string"} in grow["init"]["anyOf"]


def test_an_unknown_kind_gets_a_suggestion() -> None:
    with pytest.raises(SchemaError, match="did you mean 'policy'"):
        json_schema("polcy")


def test_the_folder_is_not_importable_by_its_own_name() -> None:
    spec = importlib.util.spec_from_file_location("schemas", FOLDER.parent / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"import graphnet\.schemas"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "graphnet.schemas.generate", "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
