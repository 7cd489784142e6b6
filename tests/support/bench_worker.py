"""A worker of bench.training that trains nothing: its seconds of a step follow from the shape, as in

python -m tests.support.bench_worker JOB.json OUTCOME.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.training.job import Job, Outcome

if __name__ == "__main__":
    job = Job.load(Path(sys.argv[1]))
    seconds = [1.0 / job.shape.per_forward] * job.steps
    Outcome(seconds, job.steps * job.shape.per_step, 0, [1.0] * job.steps, 1, {}).save(Path(sys.argv[2]))
