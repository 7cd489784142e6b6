"""A whole course from a query log to a ranked list, on generated data."""

import trainer  # noqa: F401  # before any library: it chooses how threads wait
