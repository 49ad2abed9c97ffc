"""Memory that one step frees stays with the process for the next one.

glibc hands large arrays back to the system as soon as they are freed, and the system zeroes every page of the next one:
on a CPU a step of training spends a good part of its time there. It costs memory: what was once needed is kept.
"""

import ctypes
import os

OFF = "WSVAD_ALLOCATOR"  # set to "system", nothing is changed

# <malloc.h>; the largest threshold that mallopt takes is half a heap, 32 MiB: past it, no mapping at all
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4


def keep_memory() -> bool:
    """Has glibc's malloc keep what is freed, for the whole process; once is enough.

    Returns:
        Whether it was done: not where the C library is another one, and not where the environment variable
        WSVAD_ALLOCATOR is "system".
    """
    if os.environ.get(OFF) == "system":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc; Windows has no library of that name
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20))
    taken = [mallopt(name, value) for name, value in settings]
    return 0 not in taken
