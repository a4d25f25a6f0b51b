"""A run on disk: sealed step records, resumable recording, an opened run, replay and walks over it."""

from devinterp_func.records._backwards import backwards, find_whole
from devinterp_func.records._dataset import Dataset, dataset
from devinterp_func.records._directory import n_steps, shards, snapshots
from devinterp_func.records._going_on import Progress, n_bytes
from devinterp_func.records._index import Course, Index, Moved, read_index
from devinterp_func.records._index_build import index, index_bytes
from devinterp_func.records._manifest import RunPath, create, manifest
from devinterp_func.records._memory import Memory, memory
from devinterp_func.records._open import open
from devinterp_func.records._record_step import Recording, delta_buffer, same_bits, to_record
from devinterp_func.records._recorder import prepare, record
from devinterp_func.records._replay import Replay, replay
from devinterp_func.records._run import Curve, Run
from devinterp_func.records._sealed import RecordError, canonical, install
from devinterp_func.records._sizes import RunBytes, full_log_bytes, outline, run_bytes, step_bytes
from devinterp_func.records._split import SplitCourse, split_course
from devinterp_func.records._step import Shard, StepRecord
from devinterp_func.records._store import (
    read,
    read_evaluations,
    read_params,
    scan,
    scan_shards,
    write_shard,
)
from devinterp_func.records._verify import Verified, verify
from devinterp_func.records._walk import SHARD, Last, read_walk, walk
from devinterp_func.records._walk_back import read_walk_back, walk_back

__all__ = [
    "Course",
    "Curve",
    "Dataset",
    "Index",
    "Last",
    "Memory",
    "Moved",
    "Progress",
    "RecordError",
    "Recording",
    "Replay",
    "Run",
    "RunBytes",
    "RunPath",
    "SHARD",
    "Shard",
    "SplitCourse",
    "StepRecord",
    "Verified",
    "backwards",
    "canonical",
    "create",
    "dataset",
    "delta_buffer",
    "find_whole",
    "full_log_bytes",
    "index",
    "index_bytes",
    "install",
    "manifest",
    "memory",
    "n_bytes",
    "n_steps",
    "open",
    "outline",
    "prepare",
    "read",
    "read_evaluations",
    "read_index",
    "read_params",
    "read_walk",
    "read_walk_back",
    "record",
    "replay",
    "run_bytes",
    "same_bits",
    "scan",
    "scan_shards",
    "shards",
    "snapshots",
    "split_course",
    "step_bytes",
    "to_record",
    "verify",
    "walk",
    "walk_back",
    "write_shard",
]
