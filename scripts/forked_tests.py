"""Run pytest again and again in forks of a process that has imported what graphnet does not own (torch and others).

scripts/mutate.py starts one for each worker: `python scripts/forked_tests.py` reads one JSON list of arguments of
pytest a line and answers each with one line, `{"status": ..., "output": ...}`. A fork begins without graphnet, so that
the source is read anew, and ends without leaving anything behind.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile

import pytest

PRELOADED = ("hypothesis", "hypothesis.strategies", "networkx", "numpy", "pydantic", "safetensors.torch", "torch",
             "torch.export", "torch.fx", "torch.optim.swa_utils", "torch.utils.flop_counter", "yaml")  # fmt: skip
SECONDS = 900
"""After so long a run is ended: a fault may make something endless."""


def run(arguments: list[str]) -> tuple[int, str]:
    """Exit status and output of pytest in a fork; below 0 where a signal ended it (14: it took too long)."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            status = 99
            try:
                signal.alarm(SECONDS)
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                status = int(pytest.main(arguments))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(ended), output.read().decode(errors="replace")


def main() -> None:
    """Answer line by line until there is no more."""
    for name in PRELOADED:
        importlib.import_module(name)
    assert "graphnet" not in sys.modules
    for line in sys.stdin:
        status, output = run(json.loads(line))
        sys.__stdout__.write(json.dumps({"status": status, "output": output}) + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
