"""A worker of bench.training that trains nothing: its seconds of a step follow from the shape, as in

python -m tests.support.bench_worker JOB OUTCOME
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from bench.training.job import Job, Outcome

if __name__ == "__main__":
    asked, answer = map(Path, sys.argv[1:])
    job: Job = pickle.loads(asked.read_bytes())
    if job.shape.per_step % job.shape.per_forward:
        raise ValueError(f"{job.shape.per_forward} a forward pass do not divide a step")
    seconds = [1.0 / job.shape.per_forward] * job.steps
    outcome = Outcome(seconds, job.steps * job.shape.per_step, 0, [1.0] * job.steps, 1, {})
    answer.write_bytes(pickle.dumps(outcome))
