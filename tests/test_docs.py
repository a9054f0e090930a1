"""The pages name files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [
    p for p in ROOT.iterdir() if p.is_dir() and p.name[0] != "." and p.name not in ("work_dirs", "data")
]
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in folder.glob("**/*.md"))])
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing, f"{page.relative_to(ROOT)} links to {missing}"


def test_the_tree_in_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text()
    tree = text.split("## What is where")[1].split("```")[1]
    folders: list[tuple[int, Path]] = [(-1, ROOT)]
    lines = [line for line in tree.splitlines() if line.strip()]
    assert len(lines) > 10
    for line in lines:
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        while folders[-1][0] >= indent:
            folders.pop()
        path = folders[-1][1] / name
        assert path.exists(), f"README.md names {path.relative_to(ROOT)}"
        if name.endswith("/"):
            folders.append((indent, path))
