"""What the documents name exists: files, links, flags, environment variables, imports, errors."""

import ast
import builtins
import importlib
import inspect
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from megatron_aia.aia.profile import load_profile
from megatron_aia.building.options import BuildOptions
from megatron_aia.checkpoint.conversion import ExportOptions, ImportOptions, MergeOptions
from megatron_aia.checkpoint.options import VerifyCheckpointOptions
from megatron_aia.config import Config
from megatron_aia.config.files import settings_by_name
from megatron_aia.config.megatron_lm import ANSWERS
from megatron_aia.config.renames import RENAMED
from megatron_aia.config.settings import flag, settings_of
from megatron_aia.data.mixture_file import read_mixture_file
from megatron_aia.evaluation.options import EvaluateOptions
from megatron_aia.generation.options import ChatOptions, GenerateOptions
from megatron_aia.measurement.options import AlignmentOptions, CompareOptions, FitOptions
from megatron_aia.models import fields_of_families
from megatron_aia.shards.verify import VerifyOptions

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")]
)

FLAGS_OF_TORCHRUN = {
    *("--standalone", "--nnodes", "--node-rank", "--nproc-per-node", "--shutdown-timeout"),
    *("--master-addr", "--master-port", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id"),
    "--max-restarts",
}
FLAGS_OF_THE_SCRIPT = {"--help", "--check"}
FLAGS_OF_OTHERS = {
    *("--logdir", "--demo", "--editable", "--no-build-isolation", "--signal"),
    *("--reference", "--markdown"),  # tools/benchmark_report.py
    *("--model", "--model_args", "--tasks", "--predict_only", "--output_path", "--include_path"),
    *("--outfile", "--model-path"),  # GenEval's scorer
    *("--image-root-path", "--resolution", "--pic-num", "--res-path"),  # DPG-Bench's
    *("--model-impl", "--trust-remote-code", "--chat-template"),  # vLLM, SGLang
}
WITH_OLD_NAMES = ("CHANGELOG.md", "docs/from_megatron_lm.md")
"""Documents that may name flags of earlier versions and of Megatron-LM."""
FLAGS_OF_INSPECT_DATA = {"--position", "--count", "--save-image", "--plot", "--plot-steps"}

# Made by a run or by the reader, so not in the repository.
MADE_LATER = ("demo_output/", "my_data", "my_run", "my_profile.yaml", "/data/")

_PACKAGE = REPOSITORY / "megatron_aia"
# A path may be given from the root, or from the package when it names one of its rooms.
_ROOTS = {
    path.name: folder
    for folder in (_PACKAGE, REPOSITORY)
    for path in folder.iterdir()
    if not path.name.startswith((".", "__"))
}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@cache
def text_of(document: str) -> str:
    return (REPOSITORY / document).read_text(encoding="utf-8")


def prose_of(document: str) -> str:
    return _FENCE.sub("", text_of(document))


def inline_code(document: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose_of(document))


def code_blocks(document: str, language: str) -> list[str]:
    return [body for name, body in _FENCE.findall(text_of(document)) if name == language]


def anchors(document: str) -> set[str]:
    """Return the anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(document), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def test_the_documents_are_there() -> None:
    pages = (
        "quickstart",
        "architecture",
        "aia",
        "data",
        "conversion",
        "adding_a_model",
        "troubleshooting",
    )
    expected = {f"docs/{page}.md" for page in pages} | {"README.md", "CONTRIBUTING.md"}
    assert expected <= set(DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_paths_exist(document: str) -> None:
    missing = []
    words = [word for code in inline_code(document) for word in code.split()]
    for block in code_blocks(document, "bash"):
        words += block.split()
    for word in words:
        path = word.rstrip(",;:)").split("::")[0]
        if "/" not in path or path.split("/")[0] not in _ROOTS or "*" in path:
            continue
        folder = _ROOTS[path.split("/")[0]]
        if not path.startswith(MADE_LATER) and not (folder / path).exists():
            missing.append(path)
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_nothing_is_left_to_be_filled_in(document: str) -> None:
    left = re.findall(r"^[A-Z]+$|\b(?:TODO|TBD|FIXME|XXX)\b", prose_of(document), re.MULTILINE)
    assert not left


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_resolve(document: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(document)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        path = (REPOSITORY / document).parent / name if name else REPOSITORY / document
        page = path.resolve().relative_to(REPOSITORY.resolve()).as_posix()
        if not path.exists() or (anchor and anchor not in anchors(page)):
            broken.append(target)
    assert not broken


@cache
def known_flags() -> frozenset[str]:
    settings = list(settings_by_name(Config()).values())
    for options in (
        *(BuildOptions, VerifyOptions, ImportOptions, ExportOptions, MergeOptions),
        *(
            GenerateOptions,
            ChatOptions,
            EvaluateOptions,
            FitOptions,
            CompareOptions,
            AlignmentOptions,
            VerifyCheckpointOptions,
        ),
    ):
        settings += settings_of(options).values()
    known = {setting.flag for setting in settings}
    known |= {flag(field) for field in fields_of_families()}
    known |= {flag(f"no_{setting.name}") for setting in settings if setting.kind.base is bool}
    known |= FLAGS_OF_TORCHRUN | FLAGS_OF_THE_SCRIPT | FLAGS_OF_OTHERS
    return frozenset(known | FLAGS_OF_INSPECT_DATA)


def unknown_flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - known_flags()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_flags_exist(document: str) -> None:
    allowed = {flag(old) for old in RENAMED} | set(ANSWERS) if document in WITH_OLD_NAMES else set()
    assert not unknown_flags(text_of(document)) - allowed


def test_a_flag_that_is_none_is_seen() -> None:
    """Only a switch has a form that turns it off."""
    assert unknown_flags("`--lr 1`, `--no-lr`, `--no-aia` and `--aia-strong`") == {
        *("--no-lr", "--aia-strong"),
    }


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_examples_import(document: str) -> None:
    for block in code_blocks(document, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), node.module
            elif isinstance(node, ast.Import):
                assert all(importlib.import_module(alias.name) for alias in node.names)


@cache
def definitions() -> dict[str, list[tuple[str, str]]]:
    """Return where each module, class, function, method and field of the package is defined.

    By name: pairs of a module and of the class in it, or of the module itself and "".
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for path in _PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        module = module.removesuffix(".__init__")
        found.setdefault(module.rpartition(".")[2], []).append((module, ""))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                is_class = isinstance(node, ast.ClassDef)
                found.setdefault(node.name, []).append((module, node.name if is_class else "-"))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.setdefault(node.target.id, []).append((module, "-"))
    return found


def has(module: str, class_name: str, attribute: str) -> bool:
    """Whether a module, or a class in it, has an attribute or a field of that name itself."""
    owner = importlib.import_module(module)
    owner = inspect.getattr_static(owner, class_name) if class_name else owner
    fields_of_it = getattr(owner, "__dataclass_fields__", {})
    return attribute in fields_of_it or inspect.getattr_static(owner, attribute, None) is not None


def invented(text: str) -> list[str]:
    """Return inline code of ``text`` that names what is not there: ``A.b``, ``m.f`` or ``f(x)``."""
    wrong = []
    for code in re.findall(r"`([^`\n]+)`", text):
        named = re.fullmatch(r"(?:([A-Za-z_]\w*)\.)?([A-Za-z_]\w*)(\(.*\))?", code)
        if not named or Path(code).suffix in _SUFFIXES:
            continue
        owner, name, call = named.groups()
        places = [place for place in definitions().get(owner, []) if place[1] != "-"]
        if owner and places:
            is_there = any(has(*place, name) for place in places)
        elif owner:  # of another package, which names its classes alike
            is_there = owner[0].islower() or owner in CLASSES_OF_OTHERS
        else:
            is_there = not call or name in definitions() or hasattr(builtins, name)
        if not is_there:
            wrong.append(code)
    return wrong


_SUFFIXES = {
    *(".py", ".md", ".yaml", ".sh", ".json", ".jsonl", ".npy", ".npz", ".txt", ".tar"),
    *(".model", ".tiktoken"),
}
CLASSES_OF_OTHERS = {"GPTModel"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_functions_exist(document: str) -> None:
    """``Class.method`` and ``module.function`` of this package, and calls such as ``f(x)``."""
    assert not invented(prose_of(document))


@pytest.mark.parametrize(
    ("code", "is_there"),
    [
        *(("AIAContext.attach", True), ("AIAContext.segments", True), ("AIAContext.locate", False)),
        *(("Trainer._step", True), ("Trainer.huber_gradient", False), ("Trainee.run", False)),
        *(("counts.count_step", True), ("counts.count_stop(batches)", False)),
        *(("find_terms(sample)", True), ("run_everything(x)", False)),
    ],
)
def test_an_invented_function_is_seen(code: str, is_there: bool) -> None:
    assert invented(f"It calls `{code}` there.") == ([] if is_there else [code])


def walked() -> list[tuple[str, str]]:
    """Return (file, function) of the walk through one step, in order."""
    found, file = [], ""
    for line in text_of("docs/one_step.md").splitlines():
        cells = line.split("|")
        if len(cells) == 5 and "`" in cells[2]:
            file = cells[1].strip(" `") or file
            found += [(file, name) for name in re.findall(r"`([^`]+)`", cells[2])]
    return found


def code_lines(file: str, name: str) -> int:
    """Count the lines of a function or method without its docstring."""
    body = ast.parse((REPOSITORY / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        (node,) = [n for n in body if getattr(n, "name", "") == part]
        body = node.body  # type: ignore[attr-defined]
    assert isinstance(node, ast.FunctionDef) and node.end_lineno
    first = body[0]
    docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) else 0
    return node.end_lineno - node.lineno + 1 - docstring


def test_one_step_is_short() -> None:
    functions = walked()
    assert len(functions) == len(set(functions)) > 25
    assert sum(code_lines(*function) for function in functions) < 400


def test_quoted_errors_are_in_the_code() -> None:
    """The first column of the tables of errors quotes what the program really says."""
    pieces = set()
    for folder in ("megatron_aia", "tools"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    pieces.add(node.value)
    said = "\n".join(pieces)
    tables = text_of("docs/troubleshooting.md").split("## Numbers")[0]
    rows = [line for line in tables.splitlines() if line.startswith("| `")]
    quoted = [code for row in rows for code in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert len(quoted) > 30
    assert not [words for words in quoted if words not in said]


def test_the_profile_of_the_documents_is_valid(tmp_path: Path) -> None:
    examples = [yaml.safe_load(block) for block in code_blocks("docs/aia.md", "yaml")]
    assert examples, "the format is shown by an example"
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(example))
        profile = load_profile(str(path))
        profile.resolve(profile.depth, "layer")


def test_the_mixture_file_of_the_documents_is_valid(tmp_path: Path) -> None:
    (example,) = [b for b in code_blocks("docs/loading.md", "yaml") if "phases:" in b]
    path = tmp_path / "mixture.yaml"
    path.write_text(example)
    plan = read_mixture_file(str(path))
    assert [phase.num_samples for phase in plan.phases] == [1_000_000, None]


def test_the_changelog_has_this_version() -> None:
    import megatron_aia

    assert f"## [{megatron_aia.__version__}]" in text_of("CHANGELOG.md")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_lines_are_not_the_authors_machine(document: str) -> None:
    assert not re.search(r"/(home|root|work|opt|tmp)/", text_of(document))
