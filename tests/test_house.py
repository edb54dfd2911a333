# SPDX-License-Identifier: Apache-2.0
"""The house rules of docs/ARCHITECTURE.md, read off the source. A room yet to land is absent."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import monai_unimedvl

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "monai_unimedvl"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]

ROOMS = (
    "atomic packages sequence flow tokenizer networks transforms weights compat inferers provenance data"
    " training evaluation bundle serve delivery label cli"
).split()

ASKING = ("needed", "optional_import", "import_module", "__import__")  # their first word is a module

# Outside packages that only these files or rooms may name; an empty list means nobody.
ONLY = {
    "pytorch_lightning": [
        f"training/{name}"
        for name in ("module", "datamodule", "callbacks", "checkpoints", "run", "autoencoder")
    ],
    "ignite": ["training/results", "training/sheets", "training/volumes"],
    "monailabel": ["label"],
    "monai": ROOMS[ROOMS.index("networks") :],
    "diffusers": ROOMS[ROOMS.index("networks") :],
    "lightning": [],  # its classes are not those of pytorch_lightning
    "torchvision": [],  # a wheel built for another torch breaks transformers
    "pickle": [],
    "dill": [],
    "joblib": [],
}

TOP = set(
    "monai_unimedvl bundles transforms tutorials tests docs setup.py CHANGELOG.md README.md CONTRIBUTING.md"
    " LICENSE CITATION.cff pyproject.toml constraints.txt Makefile MANIFEST.in"
    " .ci .gitignore .gitattributes .pre-commit-config.yaml".split()
)


@pytest.fixture(scope="module", autouse=True)
def parsed_once() -> Iterator[None]:
    """Five rules walk each file; 100 MB of parsed sources go when the last has."""
    yield
    tree.cache_clear()


@cache
def tree(path: Path) -> ast.Module:
    """The parsed source."""
    return ast.parse(path.read_text("utf8"), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import, inside functions too, and of each module given to one of ASKING."""
    here = ["monai_unimedvl", *path.relative_to(PACKAGE).with_suffix("").parts]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, *filter(None, [node.module]), alias.name])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            if ast.unparse(node.func).split(".")[-1] in ASKING:
                yield node.lineno, str(node.args[0].value)


def room(name: str) -> str:
    """The room of a file name such as "networks/decoder.py"; `python -m monai_unimedvl` is the cli's."""
    return name.split("/")[0].removesuffix(".py").replace("__main__", "cli")


def misplaced(path: Path, name: str) -> list[str]:
    """The imports of one file that the order of the rooms or the table of outside packages forbids."""
    bad = []
    for line, target in imports(path):
        first, *rest = target.split(".")
        if first == "monai_unimedvl":
            if not rest or rest[0] == "__version__":
                continue
            if rest[0] not in ROOMS:
                bad.append(f"{name}:{line} takes {target} from the front door: import it from its room")
            elif room(name) in ROOMS and ROOMS.index(rest[0]) > ROOMS.index(room(name)):
                bad.append(f"{name}:{line} imports {target}: {rest[0]} is to the right of {room(name)}")
        elif first in ONLY and not any(
            name == f"{place}.py" or name.startswith(f"{place}/") for place in ONLY[first]
        ):
            bad.append(f"{name}:{line} imports {first}, allowed in {ONLY[first] or 'no file'}")
    return bad


@pytest.mark.parametrize("name", NAMES)
def test_a_room_imports_only_from_rooms_to_its_left(name: str) -> None:
    assert room(name) in [*ROOMS, "__init__", "__main__"], f"{name} is in no room: add it to one of {ROOMS}"
    assert not misplaced(PACKAGE / name, name)


@pytest.mark.parametrize(
    "name, line",
    [
        ("flow.py", "def f():\n    from monai_unimedvl.networks import unimedvl"),
        ("networks/decoder.py", "from ..inferers import TextInferer"),
        ("networks/decoder.py", "from .. import weights"),
        ("inferers/context.py", "from monai_unimedvl import load"),
        ("training/objective.py", "import pytorch_lightning as pl"),
        ("training/module.py", "import lightning"),
        ("bundle.py", 'engine = optional_import("ignite.engine")'),
        ("bundle.py", 'engine = needed("ignite.engine", "This", "train")'),
        ("sequence/packing.py", "import monai.utils"),
        ("data/atlas.py", "import pickle"),
    ],
)
def test_the_import_rules_catch_what_they_forbid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, line: str
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(line)
    assert misplaced(path, name)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_is_unpickled_and_nothing_prints_but_the_cli(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "torch.load":
                safe = any(
                    key.arg == "weights_only" and ast.unparse(key.value) == "True" for key in node.keywords
                )
                assert safe, (
                    f"line {node.lineno}: torch.load without weights_only=True runs code from the file"
                )
            assert called != "print" or room(str(path.relative_to(PACKAGE))) == "cli", (
                f"line {node.lineno} prints"
            )
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            assert "load" not in [alias.name for alias in node.names], (
                "write torch.load, so that this test sees it"
            )


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_has_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text("utf8").splitlines()) <= 400, "past 400 lines it is two ideas"


def written() -> list[Path]:
    """Files of ours that can hold a comment."""
    folders = [PACKAGE, ROOT / "tests", ROOT / "transforms", ROOT / "bundles", ROOT / ".ci"]
    found = [
        path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".yaml", ".toml")
    ]
    return [*found, ROOT / "setup.py", ROOT / "pyproject.toml", ROOT / "Makefile", ROOT / ".ci" / "run"]


def test_every_file_starts_with_its_licence() -> None:
    for path in written():
        lines = path.read_text("utf8").splitlines()
        first = lines[1] if lines and lines[0].startswith("#!") else next(iter(lines), "")
        assert first == "# SPDX-License-Identifier: Apache-2.0", (
            f"{path.relative_to(ROOT)} starts with {first!r}"
        )


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_module_and_every_public_thing_in_it_says_what_it_is(path: Path) -> None:
    module = tree(path)
    bare = [] if ast.get_docstring(module) else ["the module"]
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                bare.append(node.name)
    assert not bare, f"without a docstring: {bare}"


@pytest.mark.parametrize("name", monai_unimedvl.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(monai_unimedvl, name)
    if name != "__version__":
        assert inspect.getdoc(value), f"{name} has no docstring"
        shaped = "Tensor" in str(inspect.signature(value)) and not inspect.isclass(value)
        assert not shaped or re.search(r"\([\w, .*]+\)", inspect.getdoc(value)), f"{name}: say the shapes"


def test_an_unknown_public_name_is_an_attribute_error_that_lists_the_known() -> None:
    with pytest.raises(AttributeError, match="has no public name 'Unimedvl'"):
        _ = monai_unimedvl.Unimedvl


def test_importing_the_package_loads_none_of_the_heavy_ones() -> None:
    heavy = ["torch", "monai", "transformers", "diffusers", "pytorch_lightning", "ignite"]
    code = f"import sys, monai_unimedvl; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def mapped() -> set[str]:
    """The paths in README's map: a code block, indented by two for each folder, path first on the line."""
    block = (ROOT / "README.md").read_text("utf8").split("## The map")[1].split("```")[1]
    paths, above = set(), [""]
    for line in filter(str.strip, block.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        above[depth + 1 :] = []
        name = line.split()[0]
        paths.add(above[depth] + name)
        above.append(above[depth] + name)
    return paths


def test_the_map_in_the_readme_is_the_tree() -> None:
    source = {str(path.relative_to(ROOT)) for path in FILES if path.name != "__init__.py"}
    folders = {f"{path.parent.relative_to(ROOT)}/" for path in FILES}
    tops = {f"{name}/" for name in TOP if not name.startswith(".") and (ROOT / name).is_dir()}
    tree_ = source | folders | tops
    assert mapped() == tree_, f"missing: {sorted(tree_ - mapped())}; gone: {sorted(mapped() - tree_)}"


def test_the_top_level_holds_only_what_belongs_there() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    found = listed.stdout.splitlines() if listed.returncode == 0 else os.listdir(ROOT)
    extra = {name.split("/")[0] for name in found} - TOP
    assert not extra, f"not allowed at the top level: {sorted(extra)}"


def test_bundles_and_recipes_hold_no_python() -> None:
    code = [path for name in ("bundles", "transforms") for path in (ROOT / name).rglob("*.py*")]
    assert not code


def declared() -> dict[str, list[str]]:
    """The requirement lists of setup.py by name, read without running it."""
    lists: dict[str, list[str]] = {}
    for node in tree(ROOT / "setup.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INSTALL_REQUIRES":
            lists["core"] = ast.literal_eval(node.value)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXTRAS":
            lists |= ast.literal_eval(node.value)
    return lists


def test_requirements_have_a_lower_bound_that_the_tested_version_meets() -> None:
    pins = re.findall(r"^(\S+)==(\S+)", (ROOT / "constraints.txt").read_text("utf8"), re.M)
    tested = {name.lower(): version for name, version in pins}
    wanted = [Requirement(text) for texts in declared().values() for text in texts]
    assert len(wanted) > 20
    for need in wanted:
        assert {spec.operator for spec in need.specifier} & {">=", "=="}, f"{need} has no lower bound"
        version = tested.get(need.name.lower())
        assert version is None or need.specifier.contains(version), f"{need}, but CI tests {version}"


DISTRIBUTION = {
    "dicomweb_client": "dicomweb-client",
    "faiss": "faiss-cpu",
    "ignite": "pytorch-ignite",
    "nrrd": "pynrrd",
    "openslide": "openslide-python",
    "PIL": "pillow",
    "prometheus_client": "prometheus-client",
    "pytorch_lightning": "pytorch-lightning",
    "rouge_score": "rouge-score",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


# What a user brings: no extra can hold it beside the others.
BROUGHT = ("bitsandbytes", "monailabel", "open_clip", "radeval", "torchxrayvision")
WHOLE = {"serve": "serve"}  # rooms that are nothing without one extra, and may import it at the top


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_file_imports_is_declared(name: str) -> None:
    lists = {key: {Requirement(text).name for text in texts} for key, texts in declared().items()}
    if room(name) == "label":  # an environment of its own
        lines = (PACKAGE / "label" / "requirements.txt").read_text("utf8").splitlines()
        lists["label"] = {Requirement(line).name for line in lines if line and not line.startswith("#")}
    at_top = {node.lineno for node in tree(PACKAGE / name).body}
    for line, target in imports(PACKAGE / name):
        first = target.split(".")[0]
        if first in sys.stdlib_module_names or first in ("monai_unimedvl", *BROUGHT):
            continue
        wanted = DISTRIBUTION.get(first, first)
        known = lists["core"] | lists.get(WHOLE.get(room(name), ""), set())
        known = known if line in at_top else set().union(*lists.values())
        assert wanted in known, f"line {line} imports {first}: declare {wanted}, or import it where used"


def test_no_requirement_is_gpl_or_drags_torchvision() -> None:
    gpl = {"krippendorff", "pingouin", "pylibjpeg-libjpeg", "spm-runtime"}
    torchvision = {"torchvision", "litdata", "lpips", "radeval", "torchxrayvision", "trustmark"}
    other = {"lightning", "bitsandbytes", "monailabel"}
    assert not {Requirement(text).name for texts in declared().values() for text in texts} & (
        gpl | torchvision | other
    )


def test_the_version_is_the_same_everywhere() -> None:
    version = monai_unimedvl.__version__
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf8"), re.M)[1] == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf8")
    assert "__version__" in (ROOT / "setup.py").read_text("utf8")
    assert "[project]" not in (ROOT / "pyproject.toml").read_text("utf8"), "setup.py says what is installed"


def test_the_golden_folder_says_where_its_numbers_come_from(golden: Path) -> None:
    assert "Apache-2.0" in (ROOT / "tests" / "golden" / "ORIGIN.md").read_text("utf8")
    assert json.loads((golden / "cases.json").read_text("utf8"))


def test_every_make_command_in_the_papers_is_a_target() -> None:
    targets = set(re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text("utf8"), re.M)[0].split())
    for paper in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        asked = re.findall(r"(?:^|`)make ([a-z]+(?:-[a-z]+)*)", paper.read_text("utf8"), re.M)
        assert set(asked) <= targets, f"{paper.name} asks for {sorted(set(asked) - targets)}"
