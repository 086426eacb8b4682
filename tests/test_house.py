"""The rules of the house: who may import whom, what is public, what README has to name. Read from the source alone."""

import ast
import re
import shlex
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

import hf_wsd

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hf_wsd"
RECIPES = ROOT / "recipes"

PURE = [
    "errors",
    "checks",
    "lengths",
    "durations",
    "pace",
    "deadline",
    "shapes",
    "shape_lookup",
    "segment",
    "schedule",
    "cycles",
    "builders",
    "baselines",
    "casts",
    "plan",
    "legs",
    "preview",
    "checkpoint",
    "disk",
    "room",
    "lock",
    "history",
    "lineage",
    "sameness",
    "optimizers",
    "mending",
    "completing",
    "family",
    "decision",
    "extending",
    "asked",
    "settings",
    "by_name",
    "stock",
    "command",
    "job",
]
TRAINER = [
    "scheduler",
    "overrides",
    "model_size",
    "machine",
    "randomness",
    "probe",
    "pushing",
    "samples",
    "moved",
    "keeper",
    "anew",
    "refusals",
    "start",
    "trainer_job",
    "signals",
    "ranks",
    "job_clock",
    "live",
    "damage",
    "trackers",
    "callback",
    "loop",
    "script_scheduler",
    "no_trainer",
    "registration",
    "foreign",
]
ABOVE = [
    "forking",
    "running",
    "retention",
    "pruning",
    "asking",
    "one_process",
    "demo",
    "plots",
    "scrubbing",
    "revisions",
    "curves",
    "told",
    "continuing",
    "about",
    "card",
    "bundle",
    "hub",
    "sending",
    "publishing",
    "fetching",
    "sources",
    "show",
    "schedule_plots",
    "planning",
    "rewinding",
    "adopting",
    "tree",
    "tables",
    "points",
    "screening",
    "projection",
    "intervals",
    "law",
    "scaling",
    "optimum",
    "scaling_plots",
    "fitting",
    "loss_curves",
    "robust_fit",
    "multi_power_law",
    "annealing_law",
    "local_fit",
    "forecast",
    "forecast_plots",
    "forecasting",
    "evaluating",
    "merge",
    "merging",
    "landscape",
    "terrain",
    "valley",
    "verdict",
    "surveying",
    "landscape_plots",
    "page",
    "report",
    "sections",
    "landscape_page",
    "family_page",
    "ladder_page",
    "reporting",
    "bits",
    "trials",
    "checkup",
    "doctor",
    "cli",
    "__main__",
    "stopwatch",
]
ORDER = [*PURE, *TRAINER, *ABOVE]
STANDARD_LIBRARY_ONLY = [*PURE, "forking", "running", "retention", "demo"]
MODULES = sorted(file.stem for file in PACKAGE.glob("*.py") if file.stem != "__init__")
SOURCES = sorted([*PACKAGE.rglob("*.py"), *RECIPES.rglob("*.py")])

each_module = pytest.mark.parametrize("module", MODULES)
each_source = pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imports(module: str) -> set[str]:
    """Dotted names that a module imports anywhere, in functions too; a name out of hf_wsd itself by its home."""
    found = set()
    for node in ast.walk(parsed(PACKAGE / f"{module}.py")):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}.py:{node.lineno} imports relatively"
            own = node.module == "hf_wsd"
            found |= {f"hf_wsd.{hf_wsd._HOMES.get(a.name, a.name)}" for a in node.names} if own else {node.module}
    return found


def own_imports(module: str) -> set[str]:
    return {name.split(".")[1] for name in imports(module) if name.startswith("hf_wsd.")}


# --- layers ---


def test_every_module_has_its_place_in_the_order():
    assert sorted(ORDER) == MODULES


@each_module
def test_module_imports_only_those_before_it(module):
    allowed = set(ORDER[: ORDER.index(module)]) | {"__version__"}
    assert own_imports(module) <= allowed


@pytest.mark.parametrize("module", STANDARD_LIBRARY_ONLY)
def test_pure_module_imports_the_standard_library_and_pure_modules_alone(module):
    foreign = {name for name in imports(module) if name.split(".")[0] not in {*sys.stdlib_module_names, "hf_wsd"}}
    assert foreign | (own_imports(module) - set(STANDARD_LIBRARY_ONLY)) == set()


def test_package_itself_imports_nothing_of_its_own():
    assert own_imports("__init__") == set()


# --- names ---


@pytest.mark.parametrize("name", hf_wsd.__all__)
def test_public_name_is_there(name):
    assert getattr(hf_wsd, name).__name__ == name


def test_dir_lists_the_public_names():
    assert dir(hf_wsd) == sorted(hf_wsd.__all__)


def test_name_that_is_not_public_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'hf_wsd' has no attribute 'trunk'"):
        hf_wsd.trunk  # noqa: B018


# --- words ---


def public_definitions(tree: ast.AST, prefix: str = ""):
    """Public classes, functions and methods that others can call, with their dotted names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node, f"{prefix}{node.name}.")


@pytest.mark.parametrize("module", STANDARD_LIBRARY_ONLY)
def test_pure_module_says_what_its_public_names_are(module):
    tree = parsed(PACKAGE / f"{module}.py")
    silent = [name for name, node in public_definitions(tree) if not ast.get_docstring(node)]
    assert (ast.get_docstring(tree) is not None, silent) == (True, [])


@pytest.mark.parametrize("module", PURE)
def test_pure_module_shows_its_public_names_at_work(module):
    definitions = dict(public_definitions(parsed(PACKAGE / f"{module}.py")))
    shown = {name.partition(".")[0] for name, node in definitions.items() if ">>>" in (ast.get_docstring(node) or "")}
    to_show = {name for name, node in definitions.items() if "." not in name and not is_error_or_enum(node)}
    assert to_show - shown == set()


def is_error_or_enum(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(ast.unparse(b).endswith(("Error", "Enum")) for b in node.bases)


# --- sizes ---


@each_source
def test_file_is_at_most_300_lines(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 300


@each_source
def test_function_is_at_most_45_lines_without_its_docstring(file):
    functions = [n for n in ast.walk(parsed(file)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert {f.name: body_lines(f) for f in functions if body_lines(f) > 45} == {}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    docstring = first.end_lineno - first.lineno + 1 if has_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


# --- README and pyproject name what is there ---


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_shows_every_command(readme):
    from hf_wsd.cli import app

    verbs = [command.name or command.callback.__name__ for command in app.registered_commands if not command.hidden]
    assert [verb for verb in verbs if f"hf-wsd {verb}" not in readme] == []


def test_readme_tree_names_every_file(readme):
    files = [*PACKAGE.glob("*.py"), *RECIPES.glob("*.py")]
    assert sorted(str(file.relative_to(ROOT)) for file in files if file.name not in readme) == []


def test_readme_names_no_command_that_is_not_there(readme):
    from hf_wsd.cli import app

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands} | {"--help", "--version"}
    shown = {words[1].strip("`.,:;)") for line in readme.splitlines() if (words := line.split())[:1] == ["hf-wsd"]}
    assert shown - verbs == set()


def test_pyproject_names_only_modules_that_are_there():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    named = {
        name for override in tools["mypy"]["overrides"] for name in override["module"] if name.startswith("hf_wsd")
    }
    assert sorted(name for name in named if name.split(".")[1] not in {*MODULES, "metrics"}) == []


def test_readme_shows_every_shape(readme):
    from hf_wsd.shapes import SHAPES

    shown = {f"| `{name}` | {shape.formula}" in readme for name, shape in SHAPES.items()}
    assert shown == {True}


@pytest.mark.parametrize("block", re.findall(r"```\n\$ hf-wsd (plan .*?)```", (ROOT / "README.md").read_text(), re.S))
def test_readme_shows_what_plan_prints(block, capsys, monkeypatch):
    from hf_wsd import cli

    command, _, output = block.partition("\n")
    monkeypatch.setattr("sys.argv", ["hf-wsd", *shlex.split(command)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert (end.value.code, capsys.readouterr().out) == (0, output)
