"""Its place puts this folder on the import path, so that every test can `import tiny`."""

import os
import signal
from collections.abc import Iterator

import pytest

# As the command line does it: tests run on machines that do other things too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are shared among workers
    os.environ.setdefault("OMP_NUM_THREADS", "1")

HEARD = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A run that has obeyed a signal hears no further one; the tests after it do."""
    before = {each: signal.getsignal(each) for each in signal.Signals if each.name in HEARD}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)
