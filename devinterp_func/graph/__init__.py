"""One example's loss as a graph of torch's operations, by ``torch.export``; running it, whole or in part."""

from devinterp_func.graph._batches import (
    LOGITS,
    Pass,
    Replace,
    Seen,
    attention_patterns,
    by_size,
    decode,
    forward,
    head_rows,
    logit_blocks,
    n_positions,
    resume,
    resume_needs,
    streams,
)
from devinterp_func.graph._given import Masks, at, check_batch, check_masks, draw_masks, unrounded
from devinterp_func.graph._graph import Graph, Site, choose, fingerprint, in_order, of, require_head
from devinterp_func.graph._head import Head
from devinterp_func.graph._interpret import run_example
from devinterp_func.graph._operations import Operation, Side, operation
from devinterp_func.graph._paths import Norm, below_head, final_norm, has_operation, hidden_maps, largest, writes_stream
from devinterp_func.graph._probed import Probed, run_probed, run_tail
from devinterp_func.graph._run import run
from devinterp_func.graph._sizes import value_bytes
from devinterp_func.graph._trace import Loss
from devinterp_func.graph._use import Use

__all__ = [
    "Graph",
    "Head",
    "LOGITS",
    "Loss",
    "Masks",
    "Norm",
    "Operation",
    "Pass",
    "Probed",
    "Replace",
    "Seen",
    "Side",
    "Site",
    "Use",
    "at",
    "attention_patterns",
    "below_head",
    "by_size",
    "check_batch",
    "check_masks",
    "choose",
    "decode",
    "draw_masks",
    "final_norm",
    "fingerprint",
    "forward",
    "has_operation",
    "head_rows",
    "hidden_maps",
    "in_order",
    "largest",
    "logit_blocks",
    "n_positions",
    "of",
    "operation",
    "require_head",
    "resume",
    "resume_needs",
    "run",
    "run_example",
    "run_probed",
    "run_tail",
    "streams",
    "unrounded",
    "value_bytes",
    "writes_stream",
]
