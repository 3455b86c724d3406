"""NaN and infinity, which JSON does not have."""

from __future__ import annotations

import math
from typing import Any


def strict_json(values: Any) -> Any:
    """`values` with null for NaN and infinity."""
    if isinstance(values, dict):
        return {key: strict_json(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [strict_json(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
