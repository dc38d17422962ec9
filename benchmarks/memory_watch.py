"""What this process holds in memory, and the most that it held while something ran; used by the scripts beside. Linux
only.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def held(*fields: str) -> list[int]:
    "Bytes of each field of /proc/self/status, such as VmRSS, RssAnon or VmHWM."
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [int(lines[field].split()[0]) * 1024 for field in fields]


@contextmanager
def watch(*fields: str, seconds: float = 0.002) -> Iterator[list[int]]:
    "A list that holds, at the end, the most that each field was; looked at every so many seconds by a thread."
    peak, ended = held(*fields), threading.Event()

    def look():
        while not ended.is_set():
            peak[:] = map(max, peak, held(*fields))
            time.sleep(seconds)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
        peak[:] = map(max, peak, held(*fields))
