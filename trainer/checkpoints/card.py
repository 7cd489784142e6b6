"""The model card of a checkpoint, ``README.md``: what its record says, as the page that a hub shows.

``card.md`` is the template. What is not known is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from transformers import AutoConfig

from model_repository.tokenizer.pair_encoding import ENCODING_FILE, PairEncodingConfig
from trainer.checkpoints.load import ADAPTER_FILE, CheckpointError
from trainer.checkpoints.record import short_name, stages_of
from trainer.packed.families import reach_of_layers
from trainer.packed.heads import LATE
from trainer.storage import appears_whole

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card.md")
OWN = "<!-- What stands below this line, and what is added to the head, stays when the card is written again. -->"
MADE = {
    "init": "No stage of training has run on it.",
    "pretrain": "It continued its pre-training on documents that people clicked.",
    "rank_sft": "It was fine-tuned to rank documents by their labels.",
    "distill": "It was distilled from a teacher's scores.",
    "merge": "A LoRA adapter was merged into it.",
}


def write_card(directory: Path, record: dict[str, Any], name: str, license_name: str | None = None) -> None:
    """Write or replace the card of a checkpoint whose other files are there, as ``card_text`` has it."""
    text = card_text(directory, record, name, license_name)
    with appears_whole(directory / CARD_FILE) as partial:
        partial.write_text(text, encoding="utf-8")


def card_text(directory: Path, record: dict[str, Any], name: str, license_name: str | None = None) -> str:
    """The card of a checkpoint whose other files are there. ``name`` is how its lines of code load it.

    A card that is there already keeps additions to its metadata, measures excepted, and the text below its comment.
    Raises CheckpointError for one whose metadata cannot be read, and for one with text but without that comment.
    """
    path = directory / CARD_FILE
    additions, own = _read_card(path) if path.is_file() else ({}, "")
    encoding = PairEncodingConfig.load(directory / ENCODING_FILE)
    stages, measures = record.get("stages") or stages_of(record), list(_measures(record.get("evaluations", [])))
    kind, config = _kind(directory, encoding)
    data = _metadata(kind, stages, measures, name)
    _keep_additions(data, {**additions, **({"license": license_name} if license_name else {})})
    card = ModelCard.from_template(
        data, template_path=str(TEMPLATE), name=name, kind=kind, encoding=encoding, measures=measures, files=_files,
        summary=_summary(kind, config, record), parts=json.dumps(_parts(encoding), ensure_ascii=False),
        windows=_windows(config, encoding) if kind == LATE else {}, sharpness=config.get("pair_sharpness"),
        own=OWN + own, **_training(record.get("adapter", record), stages),
    )  # fmt: skip
    return str(card).rstrip() + "\n"


def _keep_additions(data: ModelCardData, old: dict[str, Any]) -> None:
    """Metadata of another card that this one lacks, and its tags."""
    data.tags = [*dict.fromkeys([*(data.tags or ()), *(old.get("tags") or ())])]
    for key, value in old.items():
        if key != "model-index" and data.get(key) is None:
            data[key] = value


def _training(record: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Any]:
    """The training, by the names of the template."""
    return {
        "record": record,
        "arguments": record.get("arguments", {}),
        "training": record.get("training", {}),
        "stages": stages,
        "base": _base(stages),
        "way": ", then ".join(map(_stage, stages)),
        "step": _queries_per_step(record),
        "held_out": _held_out(record),
    }


def _read_card(path: Path) -> tuple[dict[str, Any], str]:
    """The metadata, and the text below the comment. Raises CheckpointError as ``card_text`` does."""
    try:
        text = path.read_text(encoding="utf-8")
        if OWN not in text and REGEX_YAML_BLOCK.sub("", text).strip():
            raise CheckpointError(f"{path}: not a card of ours; move it away, or put this line above its text: {OWN}")
        card = ModelCard(text)
        return card.data.to_dict(), card.text.partition(OWN)[2]
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: the card's metadata cannot be read: {reason}") from error


def _kind(directory: Path, encoding: PairEncodingConfig) -> tuple[str, dict[str, Any]]:
    """Whether the checkpoint is an ``adapter``, an ``llm``, or a scorer that is an ``encoder`` or a ``decoder``.

    An encoder with late interaction is ``late_interaction``.
    """
    adapter = (directory / ADAPTER_FILE).is_file()
    config = json.loads((directory / (ADAPTER_FILE if adapter else "config.json")).read_text(encoding="utf-8"))
    if adapter:
        return "adapter", config
    causal = any(kind.endswith("ForCausalLM") for kind in config.get("architectures") or ())
    compares = encoding.style == "encoder" and config.get("pair_pooling") == LATE
    return "llm" if causal else LATE if compares else encoding.style, config


def _metadata(kind: str, stages: list[dict[str, Any]], measures: list[dict[str, Any]], name: str) -> ModelCardData:
    """The head of the card, by which a hub files it. Names that are not the hub's would be refused there."""
    library = {"encoder": "sentence-transformers", "adapter": "peft"}.get(kind, "transformers")
    tags = {"encoder": ["cross-encoder", "reranker"], LATE: ["reranker"], "decoder": ["reranker"]}.get(kind, [])
    results = [
        EvalResult(
            task_type="text-ranking",
            dataset_type="unknown",
            dataset_name=each["data"].replace("`", ""),
            dataset_config=each["data"].replace("`", ""),  # which tells data of one type apart
            metric_type=each["measure"],
            metric_value=round(each["number"], 4),
        )
        for each in measures
    ]
    return ModelCardData(
        base_model=stages[0]["from"] if stages[0]["hub"] else None,
        library_name=library,
        pipeline_tag="text-ranking" if tags else None,
        tags=["disranker", *tags],
        eval_results=results or None,
        model_name=name.rpartition("/")[2] if results else None,
    )


def _windows(config: dict[str, Any], encoding: PairEncodingConfig) -> dict[str, int]:
    """How far tokens of each kind of layer see, if some do not see their whole pair."""
    reaches = reach_of_layers(AutoConfig.for_model(**config))
    return (
        {layers: reach or encoding.max_pair_tokens for layers, reach in reaches.items()}
        if any(reaches.values())
        else {}
    )


def _summary(kind: str, config: dict[str, Any], record: dict[str, Any]) -> str:
    what = {"llm": "A language model", "adapter": "A LoRA adapter of a language model"}.get(kind, "A reranker")
    family = f" ({config['model_type']})" if "model_type" in config else ""
    return f"{what}{family}, made with DisRanker. {MADE.get(str(record.get('stage')), '')}".strip()


def _parts(encoding: PairEncodingConfig) -> list[str]:
    """A decoder's template as texts to tokenise one by one."""
    parts = encoding.prompt or (
        encoding.start_token or "", encoding.query_prefix, "{query}", encoding.document_prefix, "{document}",
        encoding.end_token or "",
    )  # fmt: skip
    return [part for part in parts if part]


def _base(stages: list[dict[str, Any]]) -> str:
    first = stages[0]
    if not first["from"]:
        return ""
    if first["hub"]:
        return f"[{first['from']}](https://huggingface.co/{first['from']})"
    fresh = first["stage"] == "init" and first["from"].endswith(".json")
    return f"New weights in the shape of `{first['from']}`" if fresh else f"`{first['from']}`"


def _stage(stage: dict[str, Any]) -> str:
    return f"`{stage['stage']}`" + (f" on {_files(stage['data'])}" if stage["data"] else "")


def _files(paths: Iterable[str], folders: int = 0) -> str:
    return ", ".join(f"`{short_name(path, folders)}`" for path in paths)


def _queries_per_step(record: dict[str, Any]) -> int:
    training = record.get("training", {})
    factors = (training.get("per_device_train_batch_size", 0), training.get("gradient_accumulation_steps", 1))
    return int(factors[0] * factors[1] * record.get("processes", 1))


def _measures(evaluations: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each measure of rows of ``trainer.evaluate``, with its interval."""
    for row, data in zip(evaluations, _judged_on(evaluations), strict=True):
        for name in (name for name in row if f"{name}_interval" in row and not name.endswith("_difference")):
            if row[name] is not None:
                low, high = ("∞" if bound is None else f"{bound:.3f}" for bound in row[f"{name}_interval"])
                value = f"{row[name]:.3f} [{low}, {high}]"
                yield {
                    "data": data, "queries": row["queries"], "measure": name, "value": value, "number": row[name],
                }  # fmt: skip


def _judged_on(evaluations: Iterable[dict[str, Any]]) -> list[str]:
    """The files that judged each, with as many of the folders above as tell them from those of the others."""
    levels = [[_judges(row, folders) for row in evaluations] for folders in range(10)]
    return [
        next((name for name, level in zip(names, levels, strict=True) if level.count(name) == 1), names[-1])
        for names in zip(*levels, strict=True)
    ]


def _judges(row: dict[str, Any], folders: int) -> str:
    parts = [_files(row.get("data", ()), folders)]
    parts += [f"{name} {_files([row[name]], folders)}" for name in ("qrels", "candidates") if row.get(name)]
    parts += [f"depth {row['depth']}"] if row.get("depth") else []
    return ", ".join(parts)


def _held_out(record: dict[str, Any]) -> str:
    """A sentence about the evaluations on the way, of which the best chose the checkpoint."""
    arguments = record.get("arguments", {})
    measure = arguments.get("measure", "loss")
    name = f"eval_{measure}"
    points = [point for point in record.get("held_out", ()) if name in point and point["step"]]  # 0 has no checkpoint
    if not points:
        return ""
    choose = min if measure == "loss" else max
    best = choose(points, key=lambda point: point[name])
    return (
        f"On the held-out queries of {_files(arguments['held_out'])}, {measure} was {best[name]:.3f} "
        f"after {best['step']:,} steps, the best of {len(points):,} evaluations. It chose this checkpoint, so it is "
        "flattered."
    )
