"""What is freed stays with the process: page faults of a process of its own, which other tests do not disturb."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource
import numpy as np
from mil.allocator import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(8 << 20).fill(1)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

done = keep_memory()
faults()
print(done, faults())
"""


def run(**env):
    # numpy asks for huge pages, where there are any, which would hide what malloc does
    env = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0", **env}
    root = Path(__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=env,
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    done, faults = found.stdout.split()
    return done, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_is_kept_unless_the_environment_says_otherwise():
    done, faults = run()
    assert done == "True"
    assert faults < 1000
    done, faults = run(WSVAD_ALLOCATOR="system")
    assert done == "False"
    assert faults * os.sysconf("SC_PAGE_SIZE") > 32 << 20
