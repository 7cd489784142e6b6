"""How every command of the project ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
from tqdm import tqdm

from client import InvalidRequestError, RankingError
from client.command import command
from client.errors import DisRankerError
from model_repository.tokenizer.pair_encoding import EncodingError


class RefusedError(DisRankerError):
    exit_code = 1
    label = "refused"


class StoppedError(DisRankerError):
    label = ""

    def __init__(self, signal: int) -> None:
        super().__init__("stopped by a signal")
        self.exit_code = 128 + signal


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RankingError("no such file"), 2, "error: no such file"),
        (InvalidRequestError("no documents"), 2, "error: no documents"),
        (RefusedError("tau 0.4"), 1, "refused: tau 0.4"),
        (StoppedError(15), 143, "stopped by a signal"),
        (EncodingError("empty query"), 2, "error: empty query"),  # does not know the base
    ],
)
def test_an_error_is_one_line_and_its_own_exit_code(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @command
    def main(argv: Sequence[str] | None) -> None:
        raise error

    assert main([]) == code
    assert capsys.readouterr() == ("", f"{line}\n")


def test_a_line_does_not_break_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main(argv: Sequence[str] | None) -> None:
        with tqdm(total=2, file=sys.stderr):
            raise RefusedError("tau 0.4")

    assert main() == 1
    assert "refused: tau 0.4" in capsys.readouterr().err.replace("\r", "\n").splitlines()


def test_the_bodys_own_exit_code_and_arguments() -> None:
    @command
    def count(argv: Sequence[str] | None) -> int:
        return len(argv or ())

    @command
    def nothing(argv: Sequence[str] | None) -> None:
        """Do nothing."""

    assert [count(), count(["a"]), nothing()] == [0, 1, 0]
    assert (nothing.__name__, nothing.__doc__) == ("nothing", "Do nothing.")  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [ValueError("ours"), BrokenPipeError("of a worker"), AttributeError("exit_code")])
def test_a_bug_stays_a_traceback(error: Exception) -> None:
    @command
    def main(argv: Sequence[str] | None) -> None:
        raise error

    with pytest.raises(type(error)):
        main()


def test_ctrl_c_is_130_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main(argv: Sequence[str] | None) -> None:
        raise KeyboardInterrupt

    assert main() == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_leaves_ends_a_command_as_the_signal_would() -> None:
    """Not with 0: what the command had to do beside printing is not done."""
    source = (
        "from client.command import command\n@command\ndef main(argv):\n    while True: print('x' * 1000)\n"
        "raise SystemExit(main())"
    )
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
