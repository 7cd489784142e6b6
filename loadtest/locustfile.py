"""Load on a running server over gRPC: real queries, each with its candidates.

locust -f loadtest/ --host localhost:8001                         # then the page that it names
locust -f loadtest/ --host localhost:8001 --headless -u 8 -t 30s  # users who wait: a closed loop
locust -f loadtest/ --host localhost:8001 --headless --rate 50 -t 30s                   # an open loop
locust -f loadtest/ --host localhost:8001 --headless --slo-p99-ms 10 --report runs/load  # the highest rate
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path
from typing import Any

import gevent
from grpc.experimental.gevent import init_gevent
from locust import events

from client import RankingError
from client.errors import DisRankerError
from loadtest._flags import add_flags, read_settings
from loadtest._open_loop import STOPPED_PATIENCE_S
from loadtest._page import documents_per_second, extend_page
from loadtest._records import Report
from loadtest._report import check_target, html_path, write
from loadtest._results import FAILED
from loadtest._runs import ClosedLoopRun, Course, OpenLoopRun
from loadtest._traffic import read_groups
from loadtest._users import HOST, OpenLoopUser, RankingUser

__all__ = ["RankingUser"]  # the one that Locust finds here

init_gevent()  # before a channel is opened: else one user who waits holds up all the others

STOP_TIMEOUT_S = 60.0  # longer than a call may take


@events.init_command_line_parser.add_listener
def extend_flags(parser: Any) -> None:
    add_flags(parser)


@events.init.add_listener
def prepare(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    try:
        course = environment.course = _course(options)
        settings = course.settings
        if settings.report:
            check_target(settings.report)
        _check_server(course, answers=settings.is_open or (options.headless and not (options.master or options.worker)))
        if settings.is_open:
            course.open_loop = _open_loop(environment, course)
        if environment.web_ui:
            extend_page(environment, _course)
    except (ValueError, RankingError) as error:
        _refuse(str(error))
    if options.headless and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        gevent.signal_handler(signal.SIGINT, _interrupt, environment)
    # A user that is killed while a call is under way may leave gRPC's locks held.
    environment.stop_timeout = environment.stop_timeout or max(STOP_TIMEOUT_S, 2 * settings.timeout_s)


def _check_server(course: Course, answers: bool) -> None:
    """Raises RankingError for what is no address; with ``answers`` also for a server that does not serve the model."""
    with course.connect() as client:
        if answers:
            client.document_limit()


def _course(options: Any) -> Course:
    settings = read_settings(options)
    return Course(options.host or HOST, settings, read_groups(settings.queries))


def _open_loop(environment: Any, course: Course) -> OpenLoopRun:
    options, settings = environment.parsed_options, course.settings
    environment.user_classes = [OpenLoopUser]
    options.run_time = None  # it is of each rate, and ours to keep
    options.only_summary = options.only_summary or settings.plan is not None
    return OpenLoopRun(course, _say)


def _interrupt(environment: Any) -> None:
    """Handle Ctrl-C. As an exception it would end the greenlet that runs, and its request or the whole run with it."""
    course: Course = environment.course
    if course.interrupted:
        _leave(130)
    course.interrupted = True
    _say("stopping; Ctrl-C again leaves at once, without a report")
    if course.open_loop:
        course.open_loop.stop()
    else:
        environment.runner.quit()


@events.test_start.add_listener
def begin_anew(environment: Any, **_: Any) -> None:
    """Begin a run, of which the page can start several, each with the settings of its form."""
    if environment.web_ui:
        environment.course = _course(environment.parsed_options)
    course: Course = environment.course
    course.started = True
    if course.settings.report and not course.settings.is_open:
        course.closed_loop = ClosedLoopRun(course)


@events.quitting.add_listener
def report(environment: Any, **_: Any) -> None:
    course: Course = environment.course
    if course.open_loop:
        course.open_loop.stop()
        course.open_loop.ended.wait(2 * STOPPED_PATIENCE_S)
        found = course.open_loop.report()
        _say(found.result)
        if found.objective or not any(point.requests for point in found.points):
            environment.process_exit_code = found.exit_code
    else:
        total = environment.stats.total
        if total.num_requests:
            _say(f"{documents_per_second(total):.0f} documents/s")
        if course.started and not total.num_requests and not environment.parsed_options.worker:
            _say("error: no request was sent: give the run more time (-t), and see whether the server answers")
            environment.process_exit_code = FAILED
        if not course.closed_loop:
            return
        found = course.closed_loop.report()
        _say(found.result)
    for note in (*found.notes, *([found.bottleneck] if found.bottleneck else [])):
        _say(f"note: {note}")
    if course.settings.report and not _write(found, html_path(course.settings.report)):
        environment.process_exit_code = 2


def _write(found: Report, html: Path) -> bool:
    try:
        data = write(found, html)
    except DisRankerError as error:
        _say(f"error: {error}")
        return False
    _say(f"report: {html} and {data.name} beside it")
    return True


@events.quit.add_listener
def skip_teardown(exit_code: int, **_: Any) -> None:
    """Skip the interpreter's own end: under gevent it may wait for ever for locks that gRPC's threads hold."""
    atexit.register(_leave, exit_code)


def _refuse(reason: str) -> None:
    _say(f"error: {reason}")
    skip_teardown(2)
    sys.exit(2)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _leave(exit_code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
