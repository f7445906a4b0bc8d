"""Measured times kept between runs: one small file for each key. A file that cannot be read or written is no error."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 1


def folder() -> Path:
    """Return where times are kept: QCOMPILE_CACHE, else `qcompile` in XDG_CACHE_HOME, else in ~/.cache."""
    given = os.environ.get("QCOMPILE_CACHE")
    if given:
        return Path(given) / "tuning"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path(os.path.expanduser("~")) / ".cache") / "qcompile" / "tuning"


@dataclasses.dataclass(frozen=True)
class TuningCache:
    """Times in a folder.

    Attributes:
        folder: made when the first time is stored.
        surroundings: what all times depend on: the runtime, its version, the processor.
    """

    folder: Path
    surroundings: str

    def path(self, key: Mapping[str, Any]) -> Path:
        """Return the file that holds the times of a key."""
        text = json.dumps([FORMAT, self.surroundings, key], sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"

    def load(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the times, or None where there is no file, or one that holds anything but positive numbers."""
        try:
            stored = json.loads(self.path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        found = stored.get("ms") if isinstance(stored, dict) else None
        return found if isinstance(found, dict) and found and all(map(_is_time, found.values())) else None

    def store(self, key: Mapping[str, Any], times: Mapping[str, float]) -> None:
        """Write the times, and beside them for people what they are of; a reader sees the whole file or none."""
        text = json.dumps({"ms": dict(times), "of": key, "on": self.surroundings}, indent=1, sort_keys=True)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as part:
                (Path(part) / "times").write_text(text, encoding="utf-8")
                os.replace(Path(part) / "times", self.path(key))
        except OSError:
            return  # Measured again next time.


def _is_time(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0
