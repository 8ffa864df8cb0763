"""Run a program and print what it took, as JSON: `python -I -S bench/timed.py PROGRAM [ARGUMENT …]`.

A program of its own, and a small one: the kernel counts a child's peak of memory from that of whoever forked it.
"""

import json
import os
import sys
import time

begun = time.perf_counter()
_, status, used = os.wait4(os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ), 0)
seconds = time.perf_counter() - begun
print(
    json.dumps(
        {
            "seconds": seconds,
            "user_seconds": used.ru_utime,
            "system_seconds": used.ru_stime,
            "peak_bytes": used.ru_maxrss * 1024,
        }
    )
)
sys.exit(os.waitstatus_to_exitcode(status))
