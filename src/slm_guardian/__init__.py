"""SLM Guardian: a small language model that judges queries by your policy and answers the harmful ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm_guardian.guardian import Guardian, Verdict
    from slm_guardian.policy import Policy

__version__ = "0.1.0"
__all__ = ["Guardian", "Policy", "Verdict", "__version__"]


def __getattr__(name: str) -> Any:
    """Import on first use: `import slm_guardian` stays fast."""
    if name in ("Guardian", "Verdict"):
        from slm_guardian import guardian

        return getattr(guardian, name)
    if name == "Policy":
        from slm_guardian.policy import Policy

        return Policy
    raise AttributeError(f"module 'slm_guardian' has no attribute '{name}'")
