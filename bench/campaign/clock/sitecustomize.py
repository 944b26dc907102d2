"""Steps of the wall clock for the Python processes of a campaign, which have this folder on their path.

`$FAULTS_CLOCK_FILE` holds the seconds that the clock is off by; it is read again when its time has changed.
"""

import os
import time

_now = time.time
_file = os.environ.get("FAULTS_CLOCK_FILE", "")
_read: list[float] = [0.0, 0.0]


def _stepped() -> float:
    try:
        changed = os.stat(_file).st_mtime  # noqa: PTH116 - every line of a log passes here
        if changed != _read[0]:
            with open(_file) as file:  # noqa: PTH123
                _read[:] = [changed, float(file.read() or 0.0)]
    except (OSError, ValueError):
        pass
    return _now() + _read[1]


if _file:
    time.time = _stepped
