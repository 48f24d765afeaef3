"""Studies of structural plasticity: datasets, protocols, the runner and its report.

A study names a dataset, the methods to compare and a compactness at which their final unit counts agree;
everything here is deterministic in the seeds that the study states.
"""

from __future__ import annotations

from graphnet.study.runner import Run, StudyError, run
from graphnet.study.summary import Summary, summarise

__all__ = ["Run", "StudyError", "Summary", "run", "summarise"]
