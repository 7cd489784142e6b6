"""Measurements of training and serving, beside other systems."""

import trainer  # noqa: F401  # before any library: it chooses how threads wait
