"""Memory that a process keeps after freeing it, its interrupts and its termination."""

import os
import platform
import subprocess
import sys

import pytest

RESIDENT = """
import sys
import torch
from adaptive_opt.processes import keep_freed_memory

def mebibytes():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024

if sys.argv[1] == "kept":
    assert keep_freed_memory()
before = mebibytes()
tensors = [torch.ones(5 * 2**20) for _ in range(10)]  # 200 MiB in all
del tensors
print(mebibytes() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize("how", ["returned", "kept"])
def test_process_keeps_freed_memory(how):
    program = [sys.executable, "-c", RESIDENT, how]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    resident = float(done.stdout)
    assert resident > 150 if how == "kept" else resident < 50


INTERRUPT = """
import os
import signal
import time
from adaptive_opt.processes import raise_interrupt_on_termination

class Interrupted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

raise_interrupt_on_termination()
try:
    Interrupted()
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_termination_within_a_destructor_still_interrupts():
    program = [sys.executable, "-c", INTERRUPT]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


FORK = """
import os
import signal
from adaptive_opt.processes import delay_interrupt

os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT))
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with delay_interrupt():
        if os.fork() == 0:
            os._exit(0)
        print("forked")
except KeyboardInterrupt:
    print("interrupted")
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_ctrl_c_during_a_fork_interrupts_after_it():
    program = [sys.executable, "-c", FORK]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("forked\ninterrupted\n", "")
