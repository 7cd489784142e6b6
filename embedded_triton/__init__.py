"""The command ``tritonserver``: NVIDIA Triton out of a wheel, kept running. See command.py."""

from embedded_triton.command import main as main
