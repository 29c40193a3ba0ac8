"""Shared by all tests: one thread each, no network, and the repository as their root.

`make test` runs three at once: on two cores, as several wait for a server or a browser.
"""

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: the same sums on every machine
os.environ.setdefault("DECANT_DEVICE", "cpu")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ["DECANT_CACHE"] = tempfile.mkdtemp(prefix="decant-tests-")  # nothing that an earlier run has kept

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from scenes import Scene

pytest_plugins = ["toy_pipeline"]  # a small pipeline and a Prefect server, for the tests of `flows`


@pytest.fixture(scope="session", autouse=True)
def _deterministic() -> None:
    """As every stage does: without it, even on a CPU, a gradient's sum depends on which thread is first."""
    from decant.runtime import be_deterministic

    be_deterministic()


@pytest.fixture
def backdoored() -> "Scene":
    from scenes import backdoored  # here: it loads torch, which not every test needs

    return backdoored()


@pytest.fixture
def innocent() -> "Scene":
    from scenes import innocent

    return innocent()
