"""Executes the notebooks and holds what they print against what is committed.

    python .ci/notebooks.py            # every cell runs; texts are the same, numbers within a hundredth
    python .ci/notebooks.py --write    # replaces what is committed

Only printed text and plain representations are compared. Cells with the tag "loose" print what another processor's
rounding may turn into something else, such as which head it was; they have to run, and what must hold is asserted.
"""

import math
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "notebooks"
NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")


def execute(path: Path) -> NotebookNode:
    """The notebook with the outputs of this run, without times and counts that say nothing."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, record_timing=False, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def printed(cell: NotebookNode) -> str:
    """What a code cell printed, and the plain form of what it showed."""
    parts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", [])]
    return "\n".join(parts)


def is_close(found: str, wanted: str, share: float = 0.01) -> bool:
    """Whether two texts have the same words, and numbers that differ by no more than a share, or in the last digit.

    >>> is_close("misses 0.101, ok", "misses 0.100, ok"), is_close("3 heads", "3 texts"), is_close("a 2", "a 3")
    (True, False, False)
    """
    if NUMBER.sub("#", found) != NUMBER.sub("#", wanted):
        return False
    pairs = zip(NUMBER.findall(found), NUMBER.findall(wanted), strict=True)
    return all(_same(a, b, share) for a, b in pairs)


def _same(found: str, wanted: str, share: float) -> bool:
    a, b = (float(x.replace(",", "")) for x in (found, wanted))
    decimals = re.search(r"\.(\d+)", wanted)
    last = 10.0 ** -len(decimals[1]) if decimals and "e" not in wanted else 0.0
    return math.isclose(a, b, rel_tol=share, abs_tol=1.01 * last)


def differences(found: NotebookNode, wanted: NotebookNode) -> list[str]:
    """The cells that print something else than they did."""
    told = []
    for i, (new, old) in enumerate(zip(found.cells, wanted.cells, strict=True)):
        if new.cell_type == "code" and "loose" not in new.metadata.get("tags", []):
            if not is_close(printed(new), printed(old)):
                told.append(f"cell {i} prints\n{printed(new)}\nand not\n{printed(old)}")
    return told


def main() -> None:
    failed = False
    for path in sorted(FOLDER.glob("*.ipynb")):
        began, found = time.monotonic(), execute(path)
        if "--write" in sys.argv[1:]:
            nbformat.write(found, path)
        told = differences(found, nbformat.read(path, as_version=4))
        failed |= bool(told)
        print(f"-- {path.name}: {time.monotonic() - began:.0f} s", *told, sep="\n", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
