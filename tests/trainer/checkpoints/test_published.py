"""Published rerankers as teachers: scores of tiny ones are those of the families' published code."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from model_repository.tokenizer.pair_encoding import Document, PairEncoder
from tests.support.checkpoints import SMALL, tiny_bert, tiny_xlm_roberta
from tests.support.rerankers import gemma_tokenizer, qwen_tokenizer, tiny_gte, tiny_reranker
from tests.support.scores import packed_scores, plain_scores
from tests.support.stages import FEW, fails, run
from trainer import distill, evaluate, init, rank_sft, score
from trainer.data.rankings import read_scores

LIMITS = ["--max_query_tokens", 48, "--max_pair_tokens", 512, "--row_length", 768, "--slots_per_row", 8]
QUERIES = ["river", "what is a bridge?", " yes:\n", "Crème 東京?\n\n"]
TEXTS = [
    "",
    "silver.",
    "(copper) forest",
    "\nbread",
    "  two  spaces ",
    "tabs\tand\nlines\n\n",
    "Crème 東京 3.50€",
    "no?",
]
OWN = "Find the engine of the car."


class Family(NamedTuple):
    """How a family's published code makes the ids of a pair, and a score from the logits of the next token."""

    name: str
    make: Callable[[Path], Path]
    ids: Callable[[Any, str, str, str | None], list[int]]
    score: Callable[[Any, torch.Tensor], torch.Tensor]


def plain_ids(tokenizer: Any, *texts: str) -> list[int]:
    return [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def qwen3_ids(tokenizer: Any, query: str, document: str, instruction: str | None) -> list[int]:
    """Query and document are tokenised as one text, apart from what stands before and after it."""
    task = instruction or "Given a web search query, retrieve relevant passages that answer the query"
    return plain_ids(
        tokenizer,
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    )


def qwen3_score(tokenizer: Any, logits_V: torch.Tensor) -> torch.Tensor:
    """The published probability of yes, as a logit."""
    no, yes = (tokenizer.convert_tokens_to_ids(token) for token in ("no", "yes"))
    return torch.logit(logits_V[[no, yes]].double().log_softmax(0)[1].exp())


def mxbai_ids(tokenizer: Any, query: str, document: str, instruction: str | None) -> list[int]:
    return plain_ids(
        tokenizer,
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n",
        f"instruction: {instruction}\nquery: {query}" if instruction else f"query: {query}",
        "\n",
        f"document: {document}",
        "\n",
        "You are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
        "<|im_end|>\n<|im_start|>assistant\n",
    )


def gemma_ids(tokenizer: Any, query: str, document: str, instruction: str | None) -> list[int]:
    prompt = instruction or (
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing "
        "a prediction of either 'Yes' or 'No'."
    )
    texts = (f"A: {query}", "\n", f"B: {document}", "\n", prompt)
    return [tokenizer.bos_token_id, *plain_ids(tokenizer, *texts)]


PUBLISHED = [
    Family(
        "Qwen3-Reranker-0.6B",
        lambda path: tiny_reranker(path, "qwen3", qwen_tokenizer(), tie_word_embeddings=True),
        qwen3_ids,
        qwen3_score,
    ),
    Family(
        "mxbai-rerank-base-v2",
        lambda path: tiny_reranker(path, "qwen2", qwen_tokenizer(), eos_token_id=0, tie_word_embeddings=False),
        mxbai_ids,
        lambda tokenizer, logits: logits[plain_ids(tokenizer, "1")[0]] - logits[plain_ids(tokenizer, "0")[0]],
    ),
    Family(
        "bge-reranker-v2-gemma",
        lambda path: tiny_reranker(path, "gemma", gemma_tokenizer()),
        gemma_ids,
        lambda tokenizer, logits: logits[plain_ids(tokenizer, "Yes")[0]],
    ),
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each query with all texts."""
    documents = [{"doc_id": str(place), "title": "", "summary": text} for place, text in enumerate(TEXTS)]
    records = [{"query_id": query, "query": query, "documents": documents} for query in QUERIES]
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def scored(teacher: Path, pool: Path) -> np.ndarray[Any, Any]:
    """The scores that trainer.score writes, [queries, texts]."""
    output = teacher.with_suffix(".parquet")
    run(score, "--model", teacher, "--data", pool, "--output", output)
    scores = read_scores(output)
    return np.array([[scores[query][str(place)] for place in range(len(TEXTS))] for query in QUERIES])


@pytest.mark.parametrize("instruction", [None, OWN])
@pytest.mark.parametrize("family", PUBLISHED, ids=lambda family: family.name)
def test_a_teacher_scores_as_the_published_code_of_its_family(
    family: Family, instruction: str | None, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, teacher = family.make(tmp_path / family.name), tmp_path / "teacher"
    flags = ["--instruction", instruction] if instruction else []
    run(init, "--pretrained", source, "--output_dir", teacher, *LIMITS, *flags)
    assert re.search(r"\nscored by the logit of .+; the prompt takes \d+ of 512 tokens\n", capsys.readouterr().out)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    with torch.inference_mode():
        published = [
            [
                float(family.score(tokenizer, model(torch.tensor([ids])).logits[0, -1]))
                for ids in (family.ids(tokenizer, query, text, instruction) for text in TEXTS)
            ]
            for query in QUERIES
        ]
    ours = scored(teacher, pool)
    assert np.abs(ours - published).max() < 1e-4
    assert min(ours.std(0).min(), ours.std(1).min()) > 1e-2

    encoder = PairEncoder.load(teacher)
    (short, long) = encoder.encode("river", [Document(title=text, summary="") for text in ("", "silver " * 999)])
    end = encoder._template.end
    assert long.truncated and len(long.token_ids) == 512
    assert short.token_ids[-len(end) :].tolist() == long.token_ids[-len(end) :].tolist() == end


def test_a_published_teacher_goes_through_every_stage(data: Path, bert: Path, tmp_path: Path) -> None:
    source = tiny_reranker(tmp_path / "Qwen3-Reranker-4B", "qwen3", qwen_tokenizer())
    teacher, tuned, scores = tmp_path / "teacher", tmp_path / "tuned", tmp_path / "scores.parquet"
    run(init, "--pretrained", source, "--output_dir", teacher, *LIMITS)
    plain = plain_scores(
        AutoModelForSequenceClassification.from_pretrained(teacher), teacher, PairEncoder.load(teacher)
    )
    assert np.abs(plain - packed_scores(teacher)).max() < 1e-5
    run(rank_sft, "--model", teacher, "--data", data, "--lora_rank", 2, "--output_dir", tuned, *FEW)
    assert PairEncoder.load(tuned).config == PairEncoder.load(teacher).config
    assert not np.allclose(packed_scores(tuned), plain, atol=1e-4)
    run(score, "--model", tuned, "--data", data, "--output", scores)
    run(evaluate, "--data", data, "--systems", teacher, scores)
    run(distill, "--model", bert, "--data", data, "--scores", scores, "--output_dir", tmp_path / "student", *FEW)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("bge-reranker-v2-m3", tiny_xlm_roberta),
        ("gte-reranker-modernbert-base", tiny_gte),
        ("ms-marco-MiniLM-L6-v2", tiny_bert),
    ],
)
def test_an_encoder_with_one_logit_is_a_teacher_as_it_is(
    name: str, make: Callable[[Path], Path], pool: Path, tmp_path: Path
) -> None:
    source = make(tmp_path / name)
    (source / "pair_encoding.json").unlink(missing_ok=True)
    limits = ["--max_query_tokens", 32, "--max_pair_tokens", 128, "--row_length", 256]
    run(init, "--pretrained", source, "--output_dir", tmp_path / "teacher", *limits)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    with torch.inference_mode():
        batches = (tokenizer([query] * len(TEXTS), TEXTS, padding=True, return_tensors="pt") for query in QUERIES)
        published = [model.eval()(**batch).logits[:, 0].tolist() for batch in batches]
    ours = scored(tmp_path / "teacher", pool)
    assert np.abs(ours - published).max() < 1e-4
    assert ours.std() > 1e-2


OF_ITS_OWN = [
    "--prompt",
    "<|im_start|>Is B said of A? A:",
    " {query}",
    " B:",
    " {document}",
    " {instruction}<|im_end|>",
]


@pytest.mark.parametrize("no", [None, "no"])
def test_an_unknown_family_is_described_by_flags(no: str | None, pool: Path, tmp_path: Path) -> None:
    tokenizer = qwen_tokenizer()
    source = tiny_reranker(tmp_path / "some-reranker", "llama", tokenizer)
    flags = [*OF_ITS_OWN, "--instruction", "yes or no?", "--yes_token", "yes", *(["--no_token", no] if no else [])]
    run(init, "--pretrained", source, "--output_dir", tmp_path / "teacher", *LIMITS, *flags)
    model = AutoModelForCausalLM.from_pretrained(source)
    answers = plain_ids(tokenizer, "yes", *([no] if no else []))
    for query, row in zip(QUERIES, scored(tmp_path / "teacher", pool), strict=True):
        for text, value in zip(TEXTS, row, strict=True):
            parts = ("<|im_start|>Is B said of A? A:", f" {query}", " B:", f" {text}", " yes or no?<|im_end|>")
            with torch.inference_mode():
                yes, *rest = model(torch.tensor([plain_ids(tokenizer, *parts)])).logits[0, -1, answers].tolist()
            assert value == pytest.approx(yes - sum(rest), abs=1e-4)


def test_an_llm_with_a_score_head_keeps_it(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some publish Qwen3-Reranker with yes and no as a head already."""
    source = tiny_reranker(tmp_path / "Qwen3-Reranker-0.6B", "qwen3", qwen_tokenizer())
    run(init, "--pretrained", source, "--output_dir", tmp_path / "teacher", *LIMITS)
    in_cache = tmp_path / "models--some--Qwen3-Reranker-0.6B-seq-cls/snapshots/1a2b3c"
    head = shutil.copytree(tmp_path / "teacher", in_cache)
    run(init, "--pretrained", head, "--output_dir", tmp_path / "again", *LIMITS)
    assert np.array_equal(scored(tmp_path / "teacher", pool), scored(tmp_path / "again", pool))
    other = shutil.copytree(head, tmp_path / "renamed")
    capsys.readouterr()
    out = ["--output_dir", tmp_path / "out", *LIMITS]
    assert "an LLM with a score head; say by" in fails(init, capsys, "--pretrained", other, *out)
    flags = ["--prompt", "{query}", "{document}", "--yes_token", "yes"]
    assert "has a score head already" in fails(init, capsys, "--pretrained", other, *out, *flags)
    run(init, "--pretrained", other, "--reranker", "qwen3-reranker", *out)
    assert np.array_equal(scored(tmp_path / "teacher", pool), scored(tmp_path / "out", pool))


PAIR = ["{query}", "{document}"]
YES = ["--yes_token", "yes"]
BAD = [
    ([], "called a reranker, and its family is not known; known are qwen3-reranker, mxbai-rerank-v2, bge-reranker-v2-"),
    (["--reranker", "qwen9"], "--reranker qwen9: no known family"),
    (["--reranker", "qwen3-reranker", *YES], "--reranker names a known family"),
    (["--reranker", "none", "--instruction", OWN], "--instruction is for rerankers"),
    (["--reranker", "bge-reranker-v2-gemma"], "its tokenizer has no token '<bos>', which the prompt holds"),
    (["--reranker", "qwen3-reranker", "--query_prefix", "Q: "], "--query_prefix and --document_prefix do nothing"),
    (YES, "--yes_token needs --prompt"),
    (["--prompt", *PAIR], "--prompt needs --yes_token"),
    (
        ["--prompt", *PAIR, "--yes_token", "yes yes"],
        "'yes yes' must be one token of its tokenizer, and is 2: ['yes', 'Ġyes']",
    ),
    (["--prompt", *PAIR, *YES, "--no_token", "yes"], "and another --no_token or none"),
    (["--prompt", *PAIR, *YES, "--no_token", "東"], "'東' must be one token"),
    (["--prompt", *PAIR, *YES, "--instruction", OWN], "--instruction: the prompt has no {instruction}"),
    (["--prompt", "{instruction} {query}", "{document}", *YES], "'{instruction} {query}' needs --instruction"),
    (["--prompt", "{query}", *YES], "the prompt must have {document} once, and has it 0 times"),
    (["--prompt", "{document}", *YES], "the prompt must have {query} once, and has it 0 times"),
    (["--prompt", *PAIR, "{document}", *YES], "the prompt must have {document} once, and has it 2 times"),
    (["--prompt", "{query} {document}", *YES], "{query} must come before {document}, in another part"),
    (["--prompt", *PAIR[::-1], *YES], "{query} must come before {document}, in another part"),
    (["--prompt", "{query}", "{document}.", *YES], "what follows {document} must be another part"),
    (["--prompt", "<|im_start|>{query}", "{document}", *YES], "'<|im_start|>' of the prompt spells a control token"),
    (["--prompt", *PAIR, "no " * 500, *YES], "max_pair_tokens 512 leaves 11 tokens beside the template's 501, less"),
]


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reranker(tmp_path_factory.mktemp("unknown") / "Some-Reranker", "qwen3", qwen_tokenizer())


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_what_cannot_be_asked_is_refused(
    flags: list[str], message: str, unknown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--output_dir", tmp_path / "out", *LIMITS]
    assert message in fails(init, capsys, "--pretrained", unknown, *out, *flags)
    assert not [*tmp_path.iterdir()]


def test_models_that_no_prompt_makes_a_teacher(
    unknown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--output_dir", tmp_path / "out", *LIMITS]
    flags = ["--prompt", *PAIR, *YES]
    encoder = tiny_bert(tmp_path / "bert")
    assert "is an encoder, with a score of its own" in fails(init, capsys, "--pretrained", encoder, *flags, *out)
    AutoModel.from_config(AutoConfig.for_model("bert", **SMALL)).save_pretrained(tiny_bert(tmp_path / "a-reranker"))
    assert "names no trained head" in fails(init, capsys, "--pretrained", tmp_path / "a-reranker", *out)
    run(
        init, "--pretrained", tmp_path / "a-reranker", "--reranker", "none", "--output_dir", tmp_path / "drawn", *LIMITS
    )
    capped = tiny_reranker(tmp_path / "capped", "gemma2", gemma_tokenizer(), final_logit_softcapping=1.0)
    message = fails(init, capsys, "--pretrained", capped, *flags, *out)
    assert "the logits of this gemma2 model are capped, scaled or shifted" in message
    three = AutoConfig.for_model("bert", **{**SMALL, "num_labels": 3})
    AutoModelForSequenceClassification.from_config(three).save_pretrained(encoder)
    assert "its head gives 3 numbers for a pair" in fails(init, capsys, "--pretrained", encoder, *out)
    (tmp_path / "c.json").write_text("{}")
    assert "--prompt is for a reranker" in fails(init, capsys, "--config", tmp_path / "c.json", *flags, *out)
    run(init, "--pretrained", unknown, "--reranker", "none", *out)
    assert PairEncoder.load(tmp_path / "out").config.query_prefix == "Query: "
