"""Our guardian as a system, with every engine that a model directory can hold."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path

from slm_guardian.engines.http import HttpEngine
from slm_guardian.engines.torch import TorchEngine
from slm_guardian.evaluate.systems import Judged, digest, hash_files
from slm_guardian.guardian import Guardian
from slm_guardian.policy import Policy


class GuardianSystem:
    """A Guardian as a system; answers are not generated."""

    def __init__(self, guardian: Guardian, name: str, revision: str, parameters: int | None = None) -> None:
        """`revision` is what identifies weights and policy: `load` takes hashes of both."""
        self.name, self.revision, self.parameters = name, revision, parameters
        self._guardian = guardian

    def judge(self, texts: list[str]) -> list[Judged]:
        """Judge a batch, in order."""
        verdicts = self._guardian.check(texts, respond=False)
        return [Judged(v.harm, v.category, v.error, v.threshold) for v in verdicts]


def load(
    name: str,
    target: str | None = None,
    *,
    policy: str | Path | Policy | None = None,
    threshold: float | str | None = None,
    threads: int | None = None,
) -> GuardianSystem:
    """The guardian in the directory `target`, or the shipped one. Raises ModelError or PolicyError."""
    guardian = Guardian.load(target, policy, threshold, threads)
    directory = Path(target or str(files("slm_guardian").joinpath("assets/mini")))
    if isinstance(guardian.engine, HttpEngine):
        directory = guardian.engine.directory
    policies = (judged.model_dump_json() for judged in guardian.policies.values())
    revision = f"{hash_files(directory)}+{digest(*policies, threshold)}"
    return GuardianSystem(guardian, name, revision, _parameters(guardian, directory / "model.onnx"))


def _parameters(guardian: Guardian, exported: Path) -> int | None:
    """How many weights the model has; None where what counts them is not installed."""
    if isinstance(guardian.engine, TorchEngine):
        return guardian.engine.model.num_parameters()
    if not exported.exists():  # on a server
        return None
    try:
        import onnx
    except ImportError:
        return None
    return sum(math.prod(weights.dims) for weights in onnx.load(exported).graph.initializer)
