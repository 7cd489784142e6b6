"""Threads of OpenMP do not spin while they wait, in any process of ours that loads a library with such threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import ROOT

# Runs a module as a command and, where it comes to look for PyTorch, prints the policy that is set by then.
PROBE = """
import importlib.abc, os, runpy, sys

class AtTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("policy", os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, AtTorch())
module, sys.argv = sys.argv[1], [sys.argv[1], "--help"]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
# One command of each folder whose commands load PyTorch: the folder sets the policy, not the command.
COMMANDS = ["trainer.distill", "build_engines", "examples.demo", "bench.training.__main__"]


def output(*command: str, **variables: str) -> str:
    """Both outputs of a Python process that starts without a policy, but for ``variables``."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    result = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment | variables, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.mark.parametrize("module", COMMANDS)
def test_the_policy_is_set_before_a_command_loads_pytorch(module: str) -> None:
    assert "policy PASSIVE" in output("-c", PROBE, module)


def test_the_users_choice_stays() -> None:
    assert "policy ACTIVE" in output("-c", PROBE, "trainer.distill", OMP_WAIT_POLICY="ACTIVE")


def test_openmp_itself_takes_it() -> None:
    printed = output("-c", "import trainer.training.losses", OMP_DISPLAY_ENV="VERBOSE")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in printed
