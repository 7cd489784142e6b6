"""Who may import whom: the architecture, held by a test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENCODING = "model_repository.tokenizer.pair_encoding"
SCHEDULER = "model_repository.student.scheduler"
SHARED = (
    "data", "collate", "models", "layers", "losses", "metrics", "stage", "scoring", "baselines", "lora", "held_out",
    "training", "packed", "families", "control_tokens", "packing_check", "resume", "forward", "memory", "rankings",
    "streams", "last_layer", "saving", "prefetch", "triton_scoring",
)  # fmt: skip
STAGE_PARTS = {ENCODING, *(f"trainer.{name}" for name in SHARED)}
RUN_PARTS = {"trainer.resume", "trainer.processes", "trainer.sharded"}
ALLOWED = {
    "trainer/losses.py": set(),
    "trainer/ir_sources.py": set(),
    "trainer/data.py": {"trainer.ir_sources"},
    "trainer/rankings.py": {"trainer.data"},
    "trainer/streams.py": {"trainer.collate", "trainer.data"},
    "trainer/metrics.py": {"trainer.data"},
    "trainer/baselines.py": {"trainer.data"},
    "trainer/heads.py": set(),
    "trainer/processes.py": set(),
    "trainer/sharded.py": {ENCODING, "trainer.models"},
    "trainer/resume.py": {"trainer.processes"},
    "trainer/families.py": set(),
    "trainer/last_layer.py": set(),
    "trainer/packed.py": {"trainer.heads", "trainer.last_layer"},
    "trainer/models.py": {ENCODING, "trainer.packed", "trainer.packing_check"},
    "trainer/packing_check.py": {ENCODING, "trainer.heads", "trainer.families", "trainer.packed"},
    "trainer/layers.py": {"trainer.models"},
    "trainer/control_tokens.py": {"trainer.models"},
    "trainer/collate.py": {ENCODING, "trainer.data"},
    "trainer/prefetch.py": set(),
    "trainer/scoring.py": {
        ENCODING,
        "trainer.data",
        "trainer.rankings",
        "trainer.collate",
        "trainer.models",
        "trainer.prefetch",
    },
    "trainer/triton_server.py": {ENCODING, "trainer.data"},
    "trainer/triton_scoring.py": {ENCODING, "trainer.data", "trainer.scoring", "trainer.triton_server"},
    "trainer/held_out.py": {ENCODING, "trainer.data", "trainer.collate", "trainer.metrics", "trainer.models"},
    "trainer/lora.py": {"trainer.data", "trainer.models", "trainer.layers", "trainer.packed"},
    "trainer/stage.py": {*STAGE_PARTS, *RUN_PARTS} - {"trainer.stage", "trainer.training"},
    "trainer/training.py": {*STAGE_PARTS, *RUN_PARTS} - {"trainer.stage", "trainer.training"},
    "trainer/forward.py": {"trainer.processes", "trainer.collate", "trainer.data", "trainer.packed"},
    "trainer/memory.py": set(),
    "trainer/saving.py": {ENCODING, "trainer.lora", "trainer.models", "trainer.packed", "trainer.packing_check"},
    "trainer/costs.py": {"trainer.models", "trainer.last_layer", "trainer.layers", "trainer.packed"},
    "trainer/plan.py": {"trainer.costs", "trainer.data", "trainer.stage"},
    **{
        f"trainer/{stage}.py": STAGE_PARTS
        for stage in ("init", "pretrain", "rank_sft", "merge", "score", "distill", "evaluate")
    },
    "embedded_triton.py": set(),
}
ENGINE_PARTS = {
    ENCODING, *(f"model_repository.student.{name}_engine" for name in ("processor", "packed", "onnx", "torch")),
    "trainer.models", "trainer.metrics", "trainer.data", "trainer.collate",
}  # fmt: skip
WORKER_PARTS = {f"bench.training.workers.{name}" for name in ("clock", "decoder_pairs")}
SERVING_WORKER_PARTS = {
    *(f"bench.serving.{name}" for name in ("job", "load", "traffic", "worker")), "bench.serving.workers.children",
    "bench.serving.workers.in_process",
}  # fmt: skip
SERVING_EXTRAS = {
    "ours": {"client"},
    "engine": {
        ENCODING,
        "bench.serving.workers",
        *(f"model_repository.student.{name}_engine" for name in ("processor", "packed", "onnx")),
    },
}
OURS = {"trainer", "engines", "client", "loadtest", "bench", "examples", "model_repository", "build_engines", "tests"}


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name for name in names if name.partition(".")[0] in OURS}


def sources(folder: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py")


def modules(folder: str) -> set[str]:
    return {name.removesuffix(".py").replace("/", ".") for name in sources(folder)}


def allowed(path: str) -> set[str]:
    if path in ALLOWED:
        return ALLOWED[path]
    if path == "build_engines.py" or path.startswith("engines/"):
        return ENGINE_PARTS | modules("engines") | {"engines"}
    if path.startswith("client/"):
        return {"client", "client.gateway", "client.gateway.page", *modules("client")}
    if path.startswith("loadtest/"):
        return {"client", *modules("loadtest")}
    if path.startswith("bench/training/workers/") and path != "bench/training/workers/ours.py":
        return {"bench.training.job", *WORKER_PARTS}  # they run where nothing of ours is installed
    if path.startswith("bench/serving/workers/"):
        return SERVING_WORKER_PARTS | SERVING_EXTRAS.get(Path(path).stem, set())
    if path == "bench/instances.py":
        return {"engines.configs", *modules("trainer"), *modules("bench")}
    if path == "bench/serving_gpu/engine.py":
        return {
            ENCODING,
            "model_repository.student.torch_engine",
            *modules("engines"),
            *modules("trainer"),
            *modules("bench"),
        }
    if path.startswith("bench/client/"):
        return {"client", "bench.client", *modules("client"), *modules("bench")}  # it takes the client apart
    if path.startswith("bench/"):
        return {
            "client",
            "loadtest._schedule",
            "loadtest._traffic",
            ENCODING,
            SCHEDULER,
            *modules("trainer"),
            "bench.training",
            "bench.serving",
            *modules("bench"),
        }
    return set()


@pytest.mark.parametrize(
    "path", [*sources("trainer"), *sources("engines"), *sources("client"), *sources("loadtest"), *sources("bench"),
             "build_engines.py", "embedded_triton.py"],
)  # fmt: skip
def test_a_file_imports_only_what_the_design_allows(path: str) -> None:
    assert imported(ROOT / path) <= allowed(path)


def test_every_trainer_file_has_a_row() -> None:
    assert set(sources("trainer")) <= set(ALLOWED)


def third_party(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {str(name).partition(".")[0] for name in modules} - set(__import__("sys").stdlib_module_names)


def test_the_contract_needs_only_numpy_and_tokenizers() -> None:
    assert third_party(ROOT / "model_repository/tokenizer/pair_encoding.py") == {"numpy", "tokenizers"}


def test_the_client_library_needs_only_tritonclient_and_numpy() -> None:
    library = reached_from("client")
    assert "client.asynchronous" in library
    assert set().union(*(third_party(_source(module)) for module in library)) - OURS == {"tritonclient", "numpy"}


@pytest.mark.parametrize("name", ["client.rank", "client.compare"])
def test_the_clients_commands_need_no_more_than_it_and_show_a_bar_where_they_can(name: str) -> None:
    needed = set().union(*(third_party(_source(module)) for module in reached_from(name))) - OURS
    assert needed <= {"tritonclient", "numpy", "tqdm"}


def reached_from(module: str) -> set[str]:
    reached = {module}
    while more := {name for module in reached for name in imported(_source(module))} - reached:
        reached |= more
    return reached


def _source(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("name", ["tokenizer/token_cache", "student/scheduler"])
def test_what_tritons_models_share_with_tests_needs_only_numpy(name: str) -> None:
    path = ROOT / f"model_repository/{name}.py"
    assert imported(path) == set()
    assert third_party(path) <= {"numpy"}
