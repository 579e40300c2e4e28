"""What this process holds in memory."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path
from typing import Final

_HIGH_WATER: Final = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_STATUS: Final = Path("/proc/self/status")


def peak_rss_bytes() -> int:
    """The largest resident set of this process so far, in bytes.

    On Linux from /proc: what `getrusage` tells starts at the peak of the parent process.
    """
    if _STATUS.exists() and (found := _HIGH_WATER.search(_STATUS.read_text())):
        return int(found.group(1)) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
