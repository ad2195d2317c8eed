"""Runs a command and prints what it took, as JSON: exit status, seconds, CPU seconds, largest memory, error output.

A process of its own, started fresh: the largest memory that the system reports of a process begins with that of the one
that started it, which for the benchmarks themselves is large.
"""

import json
import os
import subprocess
import sys
import time

start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
errors = process.stderr.read() if process.stderr else b""
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - start
process.returncode = os.waitstatus_to_exitcode(status)
record = {
    "status": process.returncode,
    "wall": seconds,
    "user": usage.ru_utime,
    "cpu": usage.ru_utime + usage.ru_stime,
    "memory": usage.ru_maxrss * 1024,
    "errors": errors.decode(errors="replace"),
}
print(json.dumps(record))
