"""The pages name files that exist, commands that can be typed and configurations that are valid."""

import argparse
import ast
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from s5.segmentation.mdf import build_tables
from s5.segmentation.mdf_config import MDFConfig
from s5.segmentation.s4p_config import S4PConfig
from tests.helpers.fake_python import FakePython
from tests.helpers.s4p_runs import load_script

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [
    p for p in ROOT.iterdir() if p.is_dir() and p.name[0] != "." and p.name not in ("work_dirs", "data")
]
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in folder.glob("**/*.md"))])
NAMED = re.compile(
    r"`((?:s5|tests|scripts|configs|docs|benchmarks|S4_Pretrain|Semantic_Segmentation|Object_Detection)/[\w./]+\.\w+)`"
)
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
TREES = ("S4_Pretrain", "Semantic_Segmentation", "Object_Detection")
LAUNCHERS = {"train.sh": "S4_Pretrain/scripts", "md_finetune.sh": "Semantic_Segmentation/scripts"}
LAUNCH = re.compile(rf"`((?:\w+=\S+ )*bash ({'|'.join(LAUNCHERS)}) [^`]+)`")


def tree_of_the_readme() -> dict[Path, str]:
    """Paths in the README's tree, and what is said of them."""
    text = (ROOT / "README.md").read_text()
    tree = text.split("## What is where")[1].split("```")[1]
    folders: list[tuple[int, Path]] = [(-1, ROOT)]
    found = {}
    for line in filter(str.strip, tree.splitlines()):
        indent, (name, *purpose) = len(line) - len(line.lstrip()), line.split(maxsplit=1)
        while folders[-1][0] >= indent:
            folders.pop()
        path = folders[-1][1] / name
        found[path] = "".join(purpose)
        if name.endswith("/"):
            folders.append((indent, path))
    return found


def commands(page: Path) -> Iterator[tuple[str, Path]]:
    """Command lines of a page, and the folder of the repository that each is typed in."""
    text = page.read_text()
    for _, language, block in BLOCK.findall(text):
        folder = ROOT if page.parent.name not in TREES else page.parent
        if language in ("", "bash"):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                command = re.split(r"\s{2,}#|\s+# ", line.strip())[0]
                if command.startswith("cd "):
                    folder = folder / command.removeprefix("cd ")
                elif re.match(r"(\w+=\S+ )*(bash|python) ", command):
                    yield command, folder
    for command, launcher in LAUNCH.findall(text):
        yield command, ROOT / LAUNCHERS[launcher]


COMMANDS = sorted({(*found, page) for page in PAGES for found in commands(page)})
BLOCKS = [
    (page, block)
    for page in PAGES
    for _, language, block in BLOCK.findall(page.read_text())
    if language == "yaml"
]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing, f"{page.relative_to(ROOT)} links to {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    names = NAMED.findall(page.read_text())
    missing = [name for name in names if not any((place / name).exists() for place in (ROOT, page.parent))]
    assert not missing, f"{page.relative_to(ROOT)} names {missing}"


def test_the_tree_in_the_readme_exists() -> None:
    tree = tree_of_the_readme()
    assert len(tree) > 10
    for path, purpose in tree.items():
        assert path.exists(), f"README.md names {path.relative_to(ROOT)}"
        assert purpose, f"README.md does not say what {path.relative_to(ROOT)} is for"


@pytest.mark.parametrize("tree", TREES)
def test_every_file_of_a_tree_is_explained(tree: str) -> None:
    named = tree_of_the_readme()
    page = (ROOT / tree / "README.md").read_text()
    files = [p for p in (ROOT / tree).rglob("*") if p.suffix in (".py", ".sh", ".slurm", ".yaml")]
    assert len(files) > 3
    for path in files:
        own = path.relative_to(ROOT / tree)
        places = [own, *(place for place in own.parents if len(place.parts) > 1)]  # or its folder
        assert any(ROOT / tree / place in named for place in places), f"the tree in README.md lacks {path}"
        assert any(place.as_posix() in page for place in places), f"{tree}/README.md does not name {own}"


class Parsed(Exception):
    """A command line was understood."""


@pytest.fixture
def stop_after_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parse(parser, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def understood(call: list[str], folder: Path) -> None:
    """Whether the module or script that an interpreter is called with takes these arguments."""
    if call[0] == "-m":
        name, arguments = call[1], call[2:]
        module = importlib.import_module(name)
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{name}.__main__")
    else:
        path, arguments = folder / call[0], call[1:]
        assert path.is_file(), f"no {path}"
        module = load_script(path)
    try:
        module.main(arguments)
    except Parsed:
        return
    except SystemExit as done:
        assert done.code == 0, f"{' '.join(call)} is not understood"


@pytest.mark.parametrize(("command", "folder", "page"), COMMANDS, ids=[c for c, *_ in COMMANDS])
def test_commands_can_be_typed(
    command: str, folder: Path, page: Path, tmp_path: Path, stop_after_parsing: None
) -> None:
    words = shlex.split(command)
    variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    program, script, *arguments = words[len(variables) :]
    if program == "python" and script.startswith("-m") and arguments[0].startswith("torch."):
        pytest.skip("of PyTorch")
    if program == "python":
        understood([script, *arguments], folder)
        return
    assert (folder / script).is_file(), f"{page.relative_to(ROOT)}: no {folder / script}"
    if script not in LAUNCHERS:
        return
    python = FakePython(tmp_path)
    done = subprocess.run(
        ["bash", script, *arguments],
        cwd=folder,
        env=python.variables | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    _, call = python.calls()  # the first looks at the port and the GPUs
    first = next(i for i, word in enumerate(call) if word.endswith(".py"))  # before it are torchrun's own
    understood(call[first:], folder)


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=lambda value: getattr(value, "stem", None))
def test_configurations_are_valid(page: Path, block: str) -> None:
    """Whatever a page shows as YAML can be put into the shipped configuration of its kind."""
    shown = yaml.safe_load(block)
    fine_tuning = "tasks" in shown
    name = "Semantic_Segmentation/configs/rsseg.yaml" if fine_tuning else "S4_Pretrain/configs/pretrain.yaml"
    values = merged(yaml.safe_load((ROOT / name).read_text()), shown)
    cfg = (MDFConfig if fine_tuning else S4PConfig).model_validate(values)
    if isinstance(cfg, MDFConfig):
        build_tables(cfg)


def merged(base: dict, changes: dict) -> dict:
    """Sections are changed key by key, but datasets and classes stand for themselves."""
    return {**base, **changes} | {
        key: merged(base[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict) and key != "labels"
    }


def test_messages_of_troubleshooting_are_in_the_code() -> None:
    """Messages are rewritten now and then; the page quotes them as they are."""
    texts = []
    for path in (ROOT / "s5").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    page = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(quoted) > 15
    assert not [message for message in quoted if not any(message in text for text in texts)]
