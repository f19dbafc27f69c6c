"""A process can be forked after torch has computed in one thread there."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, torch
from adaptive_opt.processes import one_thread

torch.set_num_threads(2)
with one_thread():
    assert torch.get_num_threads() == 1
    x = torch.ones(3_000_000)
    (x * x).sum()
assert torch.get_num_threads() == 2
child = os.fork()
if not child:
    torch.set_num_threads(4)
    os._exit(0 if (x * x).sum() == len(x) else 1)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_threads_of_a_child_start_after_the_parent_has_computed():
    done = subprocess.run([sys.executable, "-c", PROGRAM], timeout=300, check=False)
    assert done.returncode == 0
