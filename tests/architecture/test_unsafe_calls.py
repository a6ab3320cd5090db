"""What no file of the product may call: whatever runs, unpickles or unpacks what somebody else has written."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("lsap_core", "lsap_archive", "tasks", "lsap", "flows", "domains")
FOLDERS = (*PACKAGES, "benchmarks", "examples", "deployments")

UNPICKLER = "lsap_core/generators/checkpoints/unpickling.py"  # where names stand for inert records
PICKLING = {"pickle", "_pickle", "cPickle", "pickletools", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
NEVER = {
    "eval": "runs what it is given",
    "exec": "runs what it is given",
    "compile": "runs what it is given",
    "__import__": "imports what it is given",
    "os.system": "asks a shell",
    "os.popen": "asks a shell",
    "subprocess.getoutput": "asks a shell",
    "subprocess.getstatusoutput": "asks a shell",
    "tempfile.mktemp": "names a file that another may make first",
    "yaml.load": "makes objects: yaml.safe_load",
    "yaml.load_all": "makes objects: yaml.safe_load_all",
    "yaml.unsafe_load": "makes objects: yaml.safe_load",
    "yaml.full_load": "makes objects: yaml.safe_load",
    "torch.jit.load": "runs a program",
    "torch.package.PackageImporter": "runs a program",
    "torch.hub.load": "downloads and runs a program",
    "torch.hub.load_state_dict_from_url": "downloads",
    "pandas.read_pickle": "unpickles",
    "PIL.Image.open": "tries formats that start other programs: tasks.pictures.decoding",
    "shutil.unpack_archive": "writes where an archive says",
    "ray.cloudpickle.loads": "unpickles",
}
# What a call has to say, and the one value that is allowed.
MUST_SAY = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "numpy.lib.format.read_array": ("allow_pickle", False),
    "jinja2.Environment": ("autoescape", True),
    "jinja2.Template": ("autoescape", True),
}
MUST_NOT_SAY = {"shell": True, "allow_pickle": True, "weights_only": False, "trust_remote_code": True}
METHODS = {"extractall": "writes where an archive says", "from_pretrained": "downloads"}


def modules(*folders: str) -> list[Path]:
    """Every module of these folders, however deep it lies; a package in which none is found has moved."""
    found = {folder: sorted((ROOT / folder).rglob("*.py")) for folder in folders}
    assert [folder for folder in folders if folder in PACKAGES and len(found[folder]) < 5] == []
    return [file for folder in folders for file in found[folder]]


def problems_of(source: str, name: str) -> Iterator[str]:
    """Every line of a file that does what is not allowed."""
    tree = ast.parse(source)
    meanings = dict(imported_names(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                modules = [f"{node.module}.{module}" for module in modules]
            yield from (
                f"{name}:{node.lineno} imports {module}"
                for module in modules
                if PICKLING & set(module.split(".")) and name != UNPICKLER
            )
        elif isinstance(node, ast.Call):
            yield from (f"{name}:{node.lineno} {problem}" for problem in problems_of_call(node, meanings))


def imported_names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Names in a file, and what they were imported as: np is numpy, load may be torch.load."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (
                    alias.asname or alias.name.partition(".")[0],
                    alias.name if alias.asname else alias.name.partition(".")[0],
                )
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def problems_of_call(call: ast.Call, meanings: dict[str, str]) -> Iterator[str]:
    function = dotted_name(call.func, meanings)
    said = {one.arg: one.value.value for one in call.keywords if isinstance(one.value, ast.Constant)}
    if function in NEVER:
        yield f"calls {function}, which {NEVER[function]}"
    if isinstance(call.func, ast.Attribute) and call.func.attr in METHODS:
        yield f"calls {call.func.attr}, which {METHODS[call.func.attr]}"
    if function in MUST_SAY:
        option, value = MUST_SAY[function]
        if said.get(option) is not value:
            yield f"calls {function} without {option}={value}"
    for option, value in MUST_NOT_SAY.items():
        if option in said and said[option] is value:
            yield f"says {option}={value}"


def dotted_name(function: ast.expr, meanings: dict[str, str]) -> str:
    """The whole name of what is called, "" for what has none."""
    parts: list[str] = []
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name):
        return ""
    return ".".join([meanings.get(function.id, function.id), *reversed(parts)])


def test_nothing_of_the_product_does_what_a_hostile_file_would_need() -> None:
    files = modules(*FOLDERS)
    assert len(files) > 250
    found = [problem for file in files for problem in problems_of(file.read_text(), file.relative_to(ROOT).as_posix())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as c",
        "from ray import cloudpickle",
        "import ray.cloudpickle",
        "import torch; torch.load('x')",
        "import torch as t; t.load('x', weights_only=False)",
        "import torch; torch.load('x', weights_only=flag)",
        "from torch import load; load('x')",
        "import numpy as np; np.load('x')",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "import numpy as np; np.save('x', y, allow_pickle=True)",
        "import yaml; yaml.load(text, Loader=yaml.Loader)",
        "import yaml; yaml.unsafe_load(text)",
        "eval(text)",
        "exec(text)",
        "import subprocess; subprocess.run(text, shell=True)",
        "import os; os.system(text)",
        "from os import system as s; s(text)",
        "import tempfile; tempfile.mktemp()",
        "from PIL import Image; Image.open(file)",
        "archive.extractall(folder)",
        "from jinja2 import Environment; Environment()",
        "from jinja2 import Template; Template(text)",
    ],
)
def test_each_of_these_would_be_found(line: str) -> None:
    assert list(problems_of(line, "tasks/some.py"))


@pytest.mark.parametrize(
    "line",
    [
        "network.eval()",
        "import re; re.compile('x')",
        "import torch; torch.compile(network)",
        "import safetensors.torch; safetensors.torch.load(data)",
        "import torch; torch.load(file, weights_only=True)",
        "import numpy as np; np.load(file, allow_pickle=False)",
        "import yaml; yaml.safe_load(text)",
        "import subprocess; subprocess.run(['git'])",
    ],
)
def test_none_of_these_would(line: str) -> None:
    assert not list(problems_of(line, "tasks/some.py"))


def test_only_one_module_may_know_pickles() -> None:
    assert not list(problems_of("import pickle, pickletools", UNPICKLER))
    assert list(problems_of((ROOT / UNPICKLER).read_text(), "tasks/some.py"))  # it is there, and does


PAGES = {"editing", "evaluation", "index", "inversion", "paper", "refinement"}
EXPLORER = "explorer.html.j2"


def test_templates_of_pages_switch_escaping_off_for_their_own_words_only() -> None:
    """`safe` may follow a text that stands in the template, never a value."""
    templates = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.j2"))
    assert {ROOT / "tasks" / "reports" / page / "page.html.j2" for page in PAGES} <= set(templates)
    assert ROOT / "lsap_archive" / "explorer" / "templates" / EXPLORER in templates
    for template in templates:
        text = template.read_text()
        assert list(expressions(text))
        for written in expressions(text):
            if "safe" in written or "Markup" in written:
                assert written.strip().startswith("'"), f"{template}: {{{{{written}}}}}"
        for line in text.splitlines():
            assert "autoescape" not in line and "{% raw" not in line, template


def test_every_template_that_a_page_names_is_among_them() -> None:
    """By a name that ends otherwise a template would not be looked at."""
    named = [
        node.value
        for file in modules(*PACKAGES)
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call)
        and dotted_name(call.func, {}).rpartition(".")[2] in ("page_template", "get_template")
        for node in call.args[:1]
        if isinstance(node, ast.Constant)
    ]
    assert set(named) == PAGES | {EXPLORER}


def expressions(template: str) -> Iterator[str]:
    """What a template writes out, {{ here }}."""
    for expression in template.split("{{")[1:]:
        yield expression.partition("}}")[0]


# --- results of Prefect ---------------------------------------------------------------------------------------
# Prefect keeps results as pickles, and reads a record as the record says (tests/security/test_hostile_names.py): so
# none is kept and none is looked for.

DECORATORS = {"flow": ("persist_result", "False"), "task": ("cache_policy", "NO_CACHE")}
NOT_TO_BE_SAID = {"cache_key_fn", "result_storage", "result_storage_key", "result_serializer"}


def decorations(source: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Every `@flow` and `@task` with what it says, and every call of `flow` and `task` that makes one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in DECORATORS:
            yield node.func.id, {one.arg or "**": ast.unparse(one.value) for one in node.keywords}
        for decorator in getattr(node, "decorator_list", ()):
            if isinstance(decorator, ast.Name) and decorator.id in DECORATORS:
                yield decorator.id, {}


def lets_prefect_keep_results(kind: str, said: dict[str, str]) -> bool:
    option, value = DECORATORS[kind]
    return said.get(option) != value or bool(said.keys() & NOT_TO_BE_SAID) or said.get("persist_result") == "True"


def test_prefect_keeps_no_result_and_looks_for_none() -> None:
    found = [(file.name, kind, said) for file in modules(*PACKAGES) for kind, said in decorations(file.read_text())]
    assert sum(kind == "flow" for _, kind, _ in found) >= 6 and sum(kind == "task" for _, kind, _ in found) >= 8
    assert not [one for one in found if lets_prefect_keep_results(*one[1:])]


@pytest.mark.parametrize(
    "line",
    [
        "@flow",
        "@flow(name='x')",
        "@flow(persist_result=True)",
        "@flow(persist_result=False, result_serializer='json')",
        "@task",
        "@task(cache_policy=INPUTS)",
        "@task(cache_policy=NO_CACHE, persist_result=True)",
        "@task(cache_policy=NO_CACHE, result_storage_key='x')",
    ],
)
def test_decorators_that_would_let_it_are_found(line: str) -> None:
    ((kind, said),) = decorations(f"{line}\ndef f(): pass")
    assert lets_prefect_keep_results(kind, said)
