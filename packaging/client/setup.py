"""The folder client/ of the repository as the package disranker_client, under whose name it imports itself there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py

IMPORT = re.compile(r"^(\s*(?:from|import) )client(?=[. ])", flags=re.MULTILINE)


class Renamed(build_py):
    def build_module(self, module: str, module_file: str, package: str) -> Any:
        target, copied = super().build_module(module, module_file, package)
        path = Path(target)
        path.write_text(IMPORT.sub(r"\1disranker_client", path.read_text(encoding="utf-8")), encoding="utf-8")
        return target, copied


setup(cmdclass={"build_py": Renamed})
