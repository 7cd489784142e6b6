"""README and docs name only what exists: files, modules, commands, flags, links."""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest

from tests import ROOT

PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy/README.md"]
PACKAGES = ("trainer", "engines", "client", "loadtest", "bench", "examples", "model_repository", "tests")
FOLDERS = (*PACKAGES, "deploy", "docs")
WRITTEN = re.compile(r"--output\w* \S+|bench/results/\S+|/models/\S+|model_repository/student/<n>|teacher/\S+")
SCRIPTS = {"build_engines.py": "build_engines", "client/rank.py": "client.rank"}
# A figure that was measured once names a command of an older commit.
ONCE = re.compile(r"`[^`]*`\s+at\s+commit")


def text_of(page: Path) -> str:
    return ONCE.sub("", page.read_text(encoding="utf-8"))


def spans(page: Path) -> list[str]:
    """Commands and inline code, continued lines joined; a span may be a line of a block."""
    text = re.sub(r"\\\n\s*", " ", text_of(page))
    fenced = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    blocks = [block for language, block in fenced.findall(text) if language in ("", "console")]
    text = fenced.sub("", text)
    blocks += re.findall(r"^(?: {4}.*\n)+", text, flags=re.MULTILINE)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return lines + [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", text)]


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(module, arguments) of every command of ours."""
    for span in spans(page):
        for part in re.split(r" && | \| ", span):
            words = shlex.split(part.split(" #")[0].replace("'", ""))
            for place, word in enumerate(words):
                if word == "-m" and words[place + 1].partition(".")[0] in PACKAGES:
                    yield words[place + 1], words[place + 2 :]
                elif word in SCRIPTS and place and words[place - 1] == "python":
                    yield SCRIPTS[word], words[place + 1 :]


USED = {(module, tuple(arguments)) for page in PAGES for module, arguments in commands(page)}


@cache
def help_of(module: str, *command: str) -> str:
    """The output of ``python -m module command --help``."""
    found = importlib.util.find_spec(module)
    assert found, f"there is no module {module}"
    main = importlib.import_module(f"{module}.__main__" if found.submodule_search_locations else module).main
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    return printed.getvalue()


@pytest.mark.parametrize("module", sorted({module for module, _ in USED}))
def test_a_command_has_the_flags_that_the_pages_give_it(module: str) -> None:
    for arguments in (arguments for name, arguments in USED if name == module):
        known = help_of(module, *arguments[: module in ("engines.versions", "engines.store")])
        for flag in (word.partition("=")[0] for word in arguments if word.startswith("--")):
            assert re.search(rf"{flag}\b", known), flag


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_names_files_and_modules_that_exist(page: Path) -> None:
    for span in spans(page):
        for path in re.findall(r"(?<![\w./-])(?:[\w-]+/)+[\w.-]*", WRITTEN.sub("", span)):
            bases = (ROOT, ROOT / "model_repository", page.parent)
            if path.split("/")[0] in FOLDERS or path.endswith((".py", ".pbtxt")):
                assert any((base / path).exists() for base in bases), path
        for name in re.findall(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})(?:\.\w+)+", span):
            assert name.endswith((".py", ".md")) or _resolves(name), name


def _resolves(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    if importlib.util.find_spec(module) is None:
        return False
    return hasattr(importlib.import_module(module), attribute) or importlib.util.find_spec(name) is not None


def test_the_tree_of_the_readme_is_that_of_the_project() -> None:
    (tree,) = re.findall(r"```\n(trainer/ .*?)```", text_of(ROOT / "README.md"), flags=re.DOTALL)
    folder = ROOT
    for line in tree.splitlines():
        name = line.split()[0]
        path = folder / name if line.startswith("  ") else ROOT / name
        assert path.exists(), path
        folder = folder if line.startswith("  ") else path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {_anchor(heading) for heading in headings}, target


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
