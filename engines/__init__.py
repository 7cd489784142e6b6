"""Checkpoints compiled into engines, judged, and installed in a model repository."""

import trainer  # noqa: F401  # before any library: it chooses how threads wait
