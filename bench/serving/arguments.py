"""The settings of the bench."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.arguments import SharedArguments
from bench.serving.systems import PEERS
from engines.table import ENGINES
from trainer.data.records import DataError

SYSTEMS = ("ours", *PEERS)
BUILDS = tuple(f"{name}-{kind}" for name, engine in ENGINES.items() if engine.compared for kind in engine.precisions)


@dataclass
class ServingArguments(SharedArguments):
    """The settings of a comparison. The student may be a scorer."""

    calibration: list[str] = field(
        default_factory=list, metadata={"help": "Other queries, to calibrate int8 with; else those of --data."}
    )
    systems: list[str] = field(
        default_factory=lambda: list(SYSTEMS), metadata={"help": f"Some of {', '.join(SYSTEMS)}."}
    )
    builds: list[str] = field(
        default_factory=lambda: ["openvino-bf16", "openvino-int8", "onnxruntime-int8"],
        metadata={"help": f"Our builds, by engine and precision: some of {', '.join(BUILDS)}."},
    )
    documents: list[int] = field(
        default_factory=lambda: [1, 10, 100, 1000], metadata={"help": "Documents of a request."}
    )
    concurrency: list[int] = field(default_factory=lambda: [1, 8, 16, 32], metadata={"help": "Callers at a time."})
    seconds: float = field(
        default=3.0, metadata={"help": "Seconds of a measurement; a request that has begun is waited for."}
    )
    quality_documents: int = field(default=1000, metadata={"help": "On which the systems' quality is compared."})
    work_dir: str = field(default="runs/bench-serving", metadata={"help": "Checkpoints, engines and logs."})
    output: str = field(default="docs/benchmarks", metadata={"help": "serving.json and two plots go there."})

    def __post_init__(self) -> None:
        self.require(systems=SYSTEMS, builds=BUILDS)
        if min(*self.documents, *self.concurrency, self.rounds, self.threads) < 1 or self.seconds <= 0:
            raise DataError("--documents, --concurrency, --rounds and --threads must be at least 1, --seconds above 0")
        if "ours" not in self.systems or not self.builds:
            raise DataError("--systems needs ours, and --builds one: that is what the others are compared with")
