"""What transformers raises for a configuration that it cannot make a model of."""

from __future__ import annotations

from huggingface_hub.errors import StrictDataclassError

REFUSALS = (
    AssertionError,
    AttributeError,
    ArithmeticError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""Where settings are missing, have another type, are 0 where it divides by them, or do not fit together."""
