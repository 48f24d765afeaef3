"""Studies of structural plasticity: datasets, protocols, the runner and its report.

A study names a dataset, the methods to compare and a compactness at which their final unit counts agree;
everything here is deterministic in the seeds that the study states.
"""
