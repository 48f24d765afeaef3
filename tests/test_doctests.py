"""The examples in docstrings run and print what they say.

`pytest --doctest-modules` would import `schemas/base.py` as `base` or `schemas.base`, which is a second
copy of the module (or the guard's ImportError), so the modules are imported under their own names here.
"""

from __future__ import annotations

import doctest
import importlib

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def test_examples_in_docstrings_hold(source_module: str) -> None:
    module = importlib.import_module(source_module)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    for case in doctest.DocTestFinder(exclude_empty=True).find(module, source_module):
        runner.run(case, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)
