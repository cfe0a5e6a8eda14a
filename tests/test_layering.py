"""The arrows between modules point one way, and the base install is enough to judge and answer."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import slm_guardian

ROOT = Path(slm_guardian.__file__).parent
BASE = {"text", "policy", "example", "layout", "errors"}
STAGES = {"generate", "train", "evaluate", "serve"}
JUDGING = {"engines", "answers", "approved", "guardian"}
SERVED = BASE | JUDGING | {"serve"}  # the gateway runs on the base install alone
# What the modules of each part may import at all; functions of engines/torch.py may also import train.
MAY_IMPORT = {
    **dict.fromkeys(BASE, BASE),
    "engines": BASE | {"engines"},
    "answers": BASE,
    "approved": BASE,
    "guardian": BASE | {"engines", "answers", "approved"},
    "": BASE | {"guardian"},
    **dict.fromkeys(STAGES, BASE | STAGES | JUDGING),
    "serve": SERVED,
    "scale": BASE | JUDGING | {"scale"},
    "cli": BASE | STAGES | JUDGING | {"scale", "cli"},
}
TRAINING = ("torch", "transformers", "sklearn", "scipy", "matplotlib", "onnx", "joblib", "safetensors")


def part(path: Path) -> str:
    """`engines` for engines/onnx.py, `text` for text.py, nothing for the package itself."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py").replace("__init__", "")


def imports(node: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Dotted names that a module imports, and whether a function does so."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative import"
            yield from ((f"{child.module}.{alias.name}", inside) for alias in child.names)
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from imports(child, inside or function)


def own_imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Parts of the package that a file imports, and whether a function does so."""
    for name, inside in imports(ast.parse(path.read_text("utf-8"))):
        if name.split(".")[0] == "slm_guardian":
            yield name.split(".")[1], inside


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path: Path) -> None:
    lazily = {"train"} if path == ROOT / "engines" / "torch.py" else set()
    allowed = MAY_IMPORT[part(path)]
    for name, inside in own_imports(path):
        assert name in (allowed | lazily if inside else allowed)


def test_nothing_but_cli_imports_cli() -> None:
    importers = {part(p) for p in ROOT.rglob("*.py") if "cli" in {name for name, _ in own_imports(p)}}
    assert importers == {"cli"}


def loaded_after(program: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a program."""
    program += "\nimport sys; print('modules:', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("modules:")[2].split())


def test_importing_the_package_loads_next_to_nothing() -> None:
    assert not loaded_after("import slm_guardian") & {*TRAINING, "onnxruntime", "numpy", "pydantic"}


COMMAND = """
import sys
from slm_guardian.cli.main import main
sys.argv = ["guardian", *{arguments}]
try:
    main()
except SystemExit as stop:
    assert not stop.code
"""


def test_the_base_install_is_enough_to_judge_and_answer() -> None:
    program = "from slm_guardian import Guardian; Guardian.load().check(['hello', '안녕'], force=True)"
    assert not loaded_after(program) & set(TRAINING)


@pytest.mark.parametrize("arguments", [["check", "--json", "--force", "hello"], ["policy", "check", "ko"]])
def test_the_base_install_is_enough_for_the_command(arguments: list[str]) -> None:
    assert not loaded_after(COMMAND.format(arguments=arguments)) & set(TRAINING)
