"""The workloads, one to a file, in the order in which they run."""

from __future__ import annotations

from bench.work.base import Measure, Workload
from bench.work.copy_in import CopyIn
from bench.work.copy_out import CopyOut
from bench.work.create import Create
from bench.work.delete_tree import DeleteTree
from bench.work.find import Find
from bench.work.idle import Idle
from bench.work.listing import Listing
from bench.work.random_write import RandomWrite
from bench.work.rewrite import Rewrite
from bench.work.seq_read import SequentialRead
from bench.work.seq_write import SequentialWrite
from bench.work.stat import Stat
from bench.work.stored import Stored

WORKLOADS: tuple[type[Workload], ...] = (
    *(Stat, Find, Listing, Create, DeleteTree, CopyIn, CopyOut, Rewrite),
    *(SequentialWrite, SequentialRead, RandomWrite, Stored, Idle),
)

MEASURES: dict[str, Measure] = {
    measure.key: measure for workload in WORKLOADS for measure in workload.measures
}
"""All measures by their keys, in the order of the workloads."""
