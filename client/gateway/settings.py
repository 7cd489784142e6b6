"""The gateway's settings, from flags and environment variables; a flag wins."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, CliApp, NoDecode, SettingsConfigDict, SettingsError

from client import Connection, InvalidRequestError
from client.connection import LONGEST_S, parse_target
from client.gateway.chunking import Chunking

PROJECT, PREFIX = "DISRANKER_", "DISRANKER_GATEWAY_"
# Without GATEWAY_ these are another's: of the command line client, and of Kubernetes' for a service named disranker.
ELSEWHERE = frozenset({"authorization", "host", "port"})
NEAR = 0.9  # of difflib's ratio
ANY = "*"  # the name of a model in place of all that are not named
Names = Annotated[tuple[str, ...], NoDecode]
Keys = Annotated[tuple[SecretStr, ...], NoDecode]


class Settings(BaseSettings):
    """Lists are given as one,two or by repeating the flag. Every flag is an environment variable too:
    DISRANKER_GATEWAY_MAX_DOCUMENTS=500 is --max_documents 500."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        cli_prog_name=f"python -m {__package__}",
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )

    host: str = Field("127.0.0.1", description="address to listen at; 0.0.0.0 is every one")
    port: int = Field(8080, ge=0, le=65535, description="0 is a free one")
    servers: Names = Field(("localhost:8001",), description="host:port of ranking servers' gRPC")
    models: Names = Field(
        ("ranker",),
        description="NAME=TARGET, the first is the default; a target is model, model@host:port,... or @host:port,...; "
        "the NAME * is any other",
    )
    root_path: str = Field("", description="the path at which a proxy shows the gateway, such as /ranking")
    timeout: float = Field(
        30.0,
        gt=0,
        le=LONGEST_S,
        allow_inf_nan=False,
        description="seconds for each: a body, the ranking server's answer, its reading",
    )
    max_documents: int = Field(1000, ge=1, description="of a request; more are refused with 413")
    max_body_bytes: int = Field(16 * 2**20, ge=1, description="of a request; more are refused with 413")
    max_concurrent: int = Field(64, ge=1, description="requests at a time; more are refused with 429")
    max_connections: int = Field(1024, ge=1, description="of callers; for another one the idlest is closed")
    max_connections_per_address: int = Field(256, ge=1, description="of those")
    head_timeout: float = Field(
        10.0, gt=0, le=LONGEST_S, allow_inf_nan=False, description="seconds until the head of a request is whole"
    )
    keep_alive: int = Field(75, ge=1, description="seconds that a connection may be idle between two requests")
    api_keys: Keys = Field((), description="any of these as `Authorization: Bearer KEY`; none: no key is asked for")
    key_file: Path | None = Field(
        None, description="more keys, a line NAME KEY [REQUESTS_PER_SECOND] for each; read again when it changes"
    )
    allowed_hosts: Names = Field((), description="of the header Host, such as *.example.com; none: any")
    hedge: float | None = Field(
        None, gt=0, lt=1, description="ask a second server after the time in which this share is answered, such as 0.95"
    )
    chunk_words: int = Field(0, ge=0, description="cut documents into pieces of so many words; 0: leave them whole")
    chunk_overlap: int = Field(0, ge=0, description="words of a piece that the piece before has too")
    max_chunks: int = Field(10, ge=1, description="pieces of a document that are read")
    tls: bool = Field(False, description="to the ranking servers; the certificates below imply it")
    root_certificates: Path | None = Field(None, description="PEM file, instead of the system's")
    certificate_chain: Path | None = Field(None, description="PEM file: the gateway's own certificate")
    private_key: Path | None = Field(None, description="PEM file: the key of that")
    authorization: SecretStr | None = Field(None, description="the header of that name, to the ranking servers")
    examples: Path | None = Field(
        None, description="JSON lines of queries with documents; the page shows the first ten to everybody"
    )
    tls_certificate: Path | None = Field(None, description="PEM file: callers are served over HTTPS, with it")
    tls_key: Path | None = Field(None, description="PEM file: the key of that")
    log_format: Literal["text", "json"] = Field("text", description="of each line")
    log_level: Literal["critical", "error", "warning", "info", "debug"] = Field("info", description="uvicorn's")

    @field_validator("servers", "models", "api_keys", "allowed_hosts", mode="before")
    @classmethod
    def _parted(cls, value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip() if isinstance(part, str) else part for part in parts if part)

    @field_validator("models")
    @classmethod
    def _whole(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        """Join the servers of a target, which commas separate too: a bare host:port belongs to the target before."""
        whole: list[str] = []
        for part in parts:
            if whole and ":" in part and not {"=", "@"} & set(part):
                whole[-1] += f",{part}"
            else:
                whole.append(part)
        return tuple(whole)

    @field_validator("root_path")
    @classmethod
    def _rooted(cls, path: str) -> str:
        path = path.rstrip("/")
        if path and not re.fullmatch(r"(/[\w.~-]+)+", path):
            raise ValueError("Input should be a path such as /ranking")
        return path

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.chunk_words and self.chunk_overlap >= self.chunk_words:
            raise ValueError(f"chunk_overlap must be below chunk_words ({self.chunk_words}), not {self.chunk_overlap}")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key: give both or neither")
        return self

    @field_validator("allowed_hosts")
    @classmethod
    def _patterns(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if (set("*:") & set(host.removeprefix("*."))) and host != "*":
                raise ValueError(f"{host!r} is neither a name nor *.NAME (any port of it is allowed)")
        return hosts

    @property
    def chunking(self) -> Chunking:
        return Chunking(self.chunk_words, self.chunk_overlap, self.max_chunks)

    def connections(self) -> dict[str, Connection]:
        """A connection for each name of a model, the default's first; that of any other name by its model's.

        Raises RankingError.
        """
        named = self._targets()
        connections = {connection.model if name == ANY else name: connection for name, connection in named}
        if not connections:
            raise InvalidRequestError("--models: name at least one")
        if len(dict(named)) < len(named):
            raise InvalidRequestError(f"--models: two have the same name: {', '.join(name for name, _ in named)}")
        if (other := dict(named).get(ANY)) and dict(named).get(other.model, other) != other:
            raise InvalidRequestError(f"--models: {ANY} is {other.model}, and there is another of that name")
        return connections

    @property
    def any_model(self) -> str | None:
        """The model for names that are not among ``connections``."""
        other = dict(self._targets()).get(ANY)
        return None if other is None else other.model

    def _targets(self) -> list[tuple[str, Connection]]:
        default = Connection(
            servers=self.servers,
            timeout_s=self.timeout,
            hedge=self.hedge,
            tls=self.tls,
            root_certificates=self.root_certificates,
            certificate_chain=self.certificate_chain,
            private_key=self.private_key,
            authorization=None if self.authorization is None else self.authorization.get_secret_value(),
        )
        return [_named(text, default) for text in self.models]


def read(argv: Sequence[str] | None) -> Settings:
    """Read the settings. Raises InvalidRequestError of one line, without the value, which may be a key."""
    _check_variables()
    try:
        return CliApp.run(Settings, None if argv is None else list(argv))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        where = f"--{name} (or {PREFIX}{name.upper()}): " if name else ""
        raise InvalidRequestError(where + first["msg"].removeprefix("Value error, ")) from error
    except SettingsError as error:
        raise InvalidRequestError(str(error)) from error


def _check_variables() -> None:
    """Raises InvalidRequestError for a variable that seems to be meant for us: the gateway would be open without it."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    short = {f"{PROJECT}{name.upper()}" for name in Settings.model_fields.keys() - ELSEWHERE}
    for name in os.environ:
        given = name.upper()
        if not given.startswith(PROJECT) or given in known or given.removeprefix(PROJECT).lower() in ELSEWHERE:
            continue
        cutoff = 0 if given.startswith(PREFIX) else NEAR
        if near := difflib.get_close_matches(given, sorted(known | short), n=1, cutoff=cutoff):
            meant = PREFIX + near[0].removeprefix(PREFIX).removeprefix(PROJECT)
            raise InvalidRequestError(f"the variable {name} is no setting of the gateway: is {meant} meant?")


def _named(text: str, default: Connection) -> tuple[str, Connection]:
    name, equals, target = text.partition("=")
    if not equals:
        connection = parse_target(text, default)
        return connection.model, connection
    if not name.strip():
        raise InvalidRequestError(f"--models: {text!r} has no name before '='")
    return name.strip(), parse_target(target, default)
