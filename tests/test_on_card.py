"""``on_card.py`` in a process of its own: torch must know the card before its first backward pass."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration


def test_nothing_assumes_that_tensors_lie_in_main_memory():
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this version of torch knows no devices that are made in Python")
    tests = Path(__file__).with_name("on_card.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
