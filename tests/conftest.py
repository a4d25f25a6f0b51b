"""Fixtures that several test files share."""

import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import shape_checks
import torch
from hypothesis import settings

shape_checks.install()  # before anything is imported that is checked

import once  # noqa: E402

from devinterp_func import text  # noqa: E402

torch.set_num_threads(1)  # what is tested is small: two processes of one thread each are faster than one of two

# How long an example takes says more of the machine than of the law; where CI is set, the same are tried each time.
settings.register_profile("laws", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("laws")


@pytest.fixture(scope="session", autouse=True)
def worked_out_once() -> Iterator[None]:
    """What follows from the same arguments again: graphs of runs, and planted texts."""
    with pytest.MonkeyPatch.context() as patch:
        once.patch(patch)
        yield


@pytest.fixture(scope="session")
def wikitext2() -> text.Corpus:
    """The real corpus from ``$WIKITEXT2_DIR``; without it the tests that need it are skipped, nothing is downloaded."""
    directory = os.environ.get("WIKITEXT2_DIR")
    if not directory or not all((Path(directory) / file).is_file() for file in text.WIKITEXT2_FILES):
        pytest.skip(f"needs WikiText-2: set WIKITEXT2_DIR to a directory with {', '.join(text.WIKITEXT2_FILES)}")
    return text.wikitext2(directory)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As a caller has it, without the tests' shape checks, which speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """A process whose user has chosen another default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
