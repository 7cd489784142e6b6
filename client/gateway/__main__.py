"""Serve the rerank APIs and a page in front of ranking servers.

python -m client.gateway --servers gpu1:8001,gpu2:8001 --port 8080
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from client import DISTRIBUTION
from client.command import command
from client.errors import DisRankerError


@command
def main(argv: Sequence[str] | None) -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - the rest of the client takes 3.10
        raise DisRankerError("the gateway needs Python 3.11 or newer")
    try:
        from client.gateway.serving import serve
    except ModuleNotFoundError as error:
        raise DisRankerError(f"the gateway needs {error.name}: pip install '{DISTRIBUTION}[gateway]'") from error
    serve(argv)


if __name__ == "__main__":
    sys.exit(main())
