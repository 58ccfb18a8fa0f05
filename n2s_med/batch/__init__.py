"""Denoise every scan of a tree, on this machine or on a cluster, and take up where a killed run was.

``plan.py`` finds what there is and what is to be done, ``task.py`` is one scan in a worker, ``local.py`` and
``cluster.py`` are the workers, ``manifest.py`` keeps what became of each scan, and ``job.py`` strings them together.
``bids.py`` finds the scans of a BIDS data set and lays the results out as a derivative.
"""

from n2s_med.batch.job import BatchJob, Summary
from n2s_med.batch.manifest import Manifest, Record, State, known
from n2s_med.batch.plan import AnyTree, Layout, Step, table

__all__ = ["AnyTree", "BatchJob", "Layout", "Manifest", "Record", "State", "Step", "Summary", "known", "table"]
