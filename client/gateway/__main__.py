"""Serve the rerank APIs and a page in front of ranking servers.

python -m client.gateway --servers gpu1:8001,gpu2:8001 --port 8080
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """As serve; exit code 2, too, where what the gateway needs beyond the client is not installed."""
    try:
        from client.gateway.serving import serve
    except ModuleNotFoundError as error:
        print(f"error: the gateway needs {error.name}: pip install 'disranker[gateway]'", file=sys.stderr)
        return 2
    return serve(argv)


if __name__ == "__main__":
    sys.exit(main())
