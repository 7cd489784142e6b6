"""A reranker served by one command: its engine, the server and the gateway are real."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from bench.children import free_ports, started
from engines import published, serve
from engines.published import write_texts
from model_repository.tokenizer.pair_encoding import Document
from tests import ROOT
from tests.support.checkpoints import tiny_roberta
from tests.support.exports import exported_once
from tests.support.gateways import ASKED
from tests.support.servers import STOP_S, Reference, descendants, wait_until_ended
from tests.support.stores import store_running
from trainer import addresses, storage
from trainer.checkpoints.load import CheckpointError
from trainer.data.records import read_groups


def test_a_checkpoint_is_built_once_and_answers_over_http(
    served_folder: Path, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Built in this process, where its graph is exported already, and served by the command, which builds nothing."""
    port = free_ports("gateway")["gateway"]
    flags = [str(served_folder / "bert"), "--folder", str(tmp_path), "--port", str(port), "--precision", "fp32"]
    flags += ["--host", "0.0.0.0"]
    with exported_once(served_folder / "graph"), monkeypatch.context() as patch:
        patch.setattr(serve, "serve", lambda *_: None)
        assert serve.main(flags) == 0
        assert "is built already" not in capsys.readouterr().out
        with store_running(tmp_path / "mirror") as store:
            put(served_folder / "bert", f"{store.address}/bert")
            flags_first = [*flags[3:], "--folder", str(tmp_path), f"{store.address}/bert"]
            assert serve.main(flags_first) == 0  # the same checkpoint
            assert "is built already" in capsys.readouterr().out
    log = tmp_path / "log"
    with started([sys.executable, "-m", "engines.serve", *flags], log) as command:
        command.wait_until(lambda: "Ctrl-C ends it\n" in log.read_text())
        *said, url = log.read_text().splitlines()
        assert url.startswith(f"http://0.0.0.0:{port} serves bert, ")
        for part in ("is built already", "WARNING:  no key is needed: whoever reaches this port can ask"):
            assert any(part in line for line in said)
        body = json.dumps({"model": "bert", **ASKED}).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/rerank", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked) as answer:
            order = [result["index"] for result in json.load(answer)["results"]]
        documents = [Document(title="", summary=text) for text in ASKED["documents"]]
        assert order == np.argsort(-reference(ASKED["query"], documents).scores).tolist()
        family = descendants(command.process.pid)
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(STOP_S) == 0, log.read_text()
        wait_until_ended(family)


def put(source: Path, address: str) -> None:
    """Into the store, without a mirror of it here."""
    path = addresses.local(address)
    path.parent.mkdir(parents=True)
    shutil.copytree(source, path)
    storage.publish(path)
    shutil.rmtree(addresses.mirror())


def test_what_is_not_at_an_address_is_named_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "s3://bucket/none.jsonl: cannot be read": [str(tmp_path), "--data", "s3://bucket/none.jsonl"],
        "s3://bucket/none: no such checkpoint": ["s3://bucket/none"],
        "--folder s3://bucket/built: what is served": [str(tmp_path), "--folder", "s3://bucket/built"],
    }
    with store_running(tmp_path / "mirror"):
        for message, flags in cases.items():
            assert serve.main([*flags, "--port", "0"]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"error: {message}")


def test_a_published_model_gets_the_longest_pairs_that_it_reads(tmp_path: Path) -> None:
    """Its own template too: RoBERTa's has two separators."""
    model = tiny_roberta(tmp_path / "model")
    (model / "pair_encoding.json").unlink()
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 100}))
    encoding = json.loads((published._encoded(model, tmp_path / "checkpoint") / "pair_encoding.json").read_text())
    assert (encoding["max_pair_tokens"], encoding["row_length"], encoding["separators"]) == (100, 100, 2)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [("BertModel", "no trained score head, it is a BertModel"), (None, "no trained score head")],
)
def test_a_model_without_a_score_of_its_own_is_refused(tmp_path: Path, architecture: str | None, message: str) -> None:
    model = tiny_roberta(tmp_path / "model")
    (model / "pair_encoding.json").unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": architecture and [architecture]}))
    with pytest.raises(CheckpointError, match=message):
        published._encoded(model, tmp_path / "checkpoint")


def test_what_decides_the_engine_is_in_its_key(
    served_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(served_checkpoint, tmp_path / "model"))
    one, other = tmp_path / "one.jsonl", tmp_path / "folder/other.jsonl"
    other.parent.mkdir()
    one.write_text("1"), other.write_text("2")
    ways = [[], ["--data", str(one)], ["--data", str(other.parent)], ["--data", "ir_datasets:some/queries"],
            ["--calibration", str(one)], ["--precision", "bf16"]]  # fmt: skip

    def key(*way: str) -> str:
        return serve.key_of(model, serve._parser().parse_args(["model", *way]))

    keys = [key(*way) for way in ways]
    assert keys[0] == key("--port", "1")
    changes: list[tuple[str, object]] = [
        ("SERVER_CODE", tmp_path / "model"), ("_version", str), ("_units", list), ("cores", lambda: 1000)
    ]  # fmt: skip
    for name, change in changes:
        with monkeypatch.context() as patch:
            patch.setattr(serve, name, change)
            keys.append(key())
    (model / "vocab.txt").write_text("garden")
    keys.append(key())
    assert len({*keys}) == len(ways) + len(changes) + 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["missing/of/all"], "missing/of/all: no such checkpoint"),
        (["runs/of-nobody-at-all"], "runs/of-nobody-at-all: neither a directory here nor a model of the hub"),
        ([".", "--data", "missing.jsonl"], "missing.jsonl: cannot be read"),
        ([".", "--calibration", "log.jsonl"], "give judged --data too"),
        ([".", "--port", "TAKEN"], "cannot listen at 127.0.0.1:"),
        ([".", "--port", "70000"], "--port must be at most 65535"),
        ([".", "--key_file", "missing.keys"], "--key_file missing.keys: no such file"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = [str(taken.getsockname()[1]) if flag == "TAKEN" else flag for flag in flags]
        assert serve.main([*flags, *([] if "--port" in flags else ["--port", "0"])]) == 2
    error = capsys.readouterr().err
    assert re.match(f"error: .*{re.escape(message)}", error) and error.count("\n") == 1


def test_an_address_may_be_of_ipv6() -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    serve.check_address("::1", 0)


def test_what_is_served_ends_with_a_command_that_is_killed(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from bench.children import end_with_parent, started\n"
        f"with started(['sleep', '1000'], Path({str(tmp_path / 'log')!r}), before=end_with_parent) as child:\n"
        "    print(child.process.pid, flush=True); child.process.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True) as command:
        assert command.stdout is not None and command.stdout.readline()
        family = descendants(command.pid)
        command.kill()
    assert len(family) == 1
    wait_until_ended(family)


def test_generated_texts_are_judged_queries_of_many_words(tmp_path: Path) -> None:
    groups = read_groups(write_texts(tmp_path / "texts.jsonl"))
    assert len(groups) == published.QUERIES
    for group in groups:
        assert [document.label for document in group.documents] == [1.0] * 4 + [0.0] * 8
        assert all(len(document.summary) >= published.SHORTEST for document in group.documents)
