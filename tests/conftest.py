"""Its place puts this folder on the import path, so that every test can `import tiny`."""

import os

# As the command line does it: tests run on machines that do other things too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are shared among workers
    os.environ.setdefault("OMP_NUM_THREADS", "1")
