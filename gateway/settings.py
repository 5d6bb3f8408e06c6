"""The gateway's settings: read once from the environment at start, frozen, passed down.

Names are ``GATEWAY_`` + field, with ``__`` between levels: ``GATEWAY_BACKEND__URLS``. An unknown name or a bad value
ends the start with a message that names it. The docstring under each field is its meaning in the settings table of
gateway/README.md (``python -m gateway settings`` prints it; a test keeps the two equal).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway import environment
from gateway.redis_url import redis_url

Urls = Annotated[tuple[str, ...], NoDecode]
Names = Annotated[tuple[str, ...], NoDecode]
BackendKind = Literal["tgi", "vllm", "llamacpp"]

PREFIX = "GATEWAY_"
# Constants now. Accepted without effect for one release; after that unknown like any other name.
_WITHOUT_EFFECT = frozenset(
    {
        "GATEWAY_BACKEND__MAX_CONNECTIONS",
        "GATEWAY_REWARD__MAX_WAIT_MS",
        "GATEWAY_REWARD__MAX_QUEUE",
        "GATEWAY_JOURNAL__BATCH_RECORDS",
        "GATEWAY_API__LIMITS_TIMEOUT_S",
        "GATEWAY_SCHEMAS__MAX_VALUES",
        "GATEWAY_SCHEMAS__MAX_EXPANDED",
        "GATEWAY_SCHEMAS__MAX_REPEATS",
        "GATEWAY_SCHEMAS__MAX_PATTERN",
    }
)
_ORIGIN = re.compile(r"(?!https://.*:443$|http://.*:80$)[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _split(value: object) -> object:
    return environment.split_list(value) if isinstance(value, str) else value


def is_loopback(host: str) -> bool:
    return host in {"127.0.0.1", "localhost", "::1"}


def http_urls(urls: tuple[str, ...]) -> tuple[str, ...]:
    """Return the URLs without their final slash.

    Raises:
        ValueError: One is not an http or https URL with a host.
    """
    if any(urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname for url in urls):
        raise ValueError("one or more http:// or https:// URLs are needed")
    return tuple(url.rstrip("/") for url in urls)


def server_urls(urls: tuple[str, ...]) -> tuple[str, ...]:
    """Return the URLs without their final slash; ``dns+http://`` is allowed too: a server for each address of the host.

    Raises:
        ValueError: One is neither.
    """
    plain = http_urls(tuple(url.removeprefix("dns+") if url.startswith("dns+http://") else url for url in urls))
    return tuple(f"dns+{url}" if given.startswith("dns+") else url for given, url in zip(urls, plain, strict=True))


class BackendSettings(_Group):
    """The servers that draw candidates."""

    kind: Literal["auto", BackendKind] = "auto"
    """Kind of server at the URLs; auto asks it, and treats it as TGI until it answers (SGLang is vllm)."""
    urls: Urls = Field(default=("http://127.0.0.1:8080",), min_length=1)
    """Base URLs of the replicas, separated by commas; dns+http://host:port means one for each address of the host."""
    api_key: str = ""
    """Sent to the backend as a bearer token. HF_TOKEN is never sent."""
    request_timeout_s: float = Field(default=120.0, gt=0)
    """Longest time that one candidate may take."""
    connect_timeout_s: float = Field(default=5.0, gt=0)
    """Longest time to open a connection."""
    unhealthy_s: float = Field(default=5.0, ge=0)
    """Time that a replica that broke a connection is not used."""
    adapters_dir: str = ""
    """Folder of the adapters as vLLM's replicas see it; one that lost the adapter in use reloads it."""
    ca_file: Path | None = None
    """CA certificates (PEM) to trust for https:// replicas, instead of the system's."""

    _parts = field_validator("urls", mode="before")(_split)
    _http_only = field_validator("urls")(server_urls)


class RewardSettings(_Group):
    """The source of rewards: a model in this process, or servers."""

    model: str = ""
    """Local reward model: a folder or hub id of a one-label sequence classifier. Excludes url."""
    adapter: Path | None = None
    """PEFT adapter (safetensors) applied on top of the local model."""
    url: str = ""
    """Reward server that speaks /classify (vLLM, SGLang, python -m gateway reward), or several of one model, separated
    by commas. Excludes model."""
    url_model: str = ""
    """Model name sent to the remote server."""
    tokenizer: str = ""
    """Tokenizer whose chat template renders conversations for a remote vLLM or SGLang; empty for our own server."""
    api_key: str = ""
    """Sent to the remote reward server as a bearer token; python -m gateway reward requires it of its callers."""
    host: str = "127.0.0.1"
    """Address that python -m gateway reward listens on; anything but loopback needs GATEWAY_REWARD__API_KEY."""
    port: int = Field(default=8001, ge=0, le=65535)
    """Port that python -m gateway reward listens on."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto uses CUDA if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto is bfloat16 on CUDA and float32 on the CPU."""
    max_length_tokens: int = Field(default=4096, ge=16)
    """Longest input; a longer one loses the beginning of its prompt, and its reward is marked as truncated."""
    max_batch_tokens: int = Field(default=16384, ge=16)
    """Padded tokens in one batch."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Longest time that a race waits for rewards after its last candidate finished."""
    ca_file: Path | None = None
    """CA certificates (PEM) to trust for an https:// reward server, instead of the system's."""

    @property
    def urls(self) -> tuple[str, ...]:
        return http_urls(environment.split_list(self.url))

    @field_validator("url")
    @classmethod
    def _http_only(cls, url: str) -> str:
        if url and not http_urls(environment.split_list(url)):
            raise ValueError("one or more http:// or https:// URLs are needed")
        return url

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.model and self.url:
            raise ValueError("set model (in this process) or url (a server), not both")
        if not is_loopback(self.host) and not self.api_key:
            raise ValueError(f"host {self.host} is not loopback: set {PREFIX}REWARD__API_KEY to require it of callers")
        return self


class RedisSettings(_Group):
    """The Redis of records and the policy document."""

    url: str = Field(default="redis://127.0.0.1:6379/0", repr=False)
    """redis:// or rediss:// (TLS) URL of one Redis (no Cluster, no Sentinel), with user, password and database."""
    username: str = ""
    """ACL user, if the URL has none."""
    password: str = Field(default="", repr=False)
    """Password, if the URL has none."""
    ca_file: Path | None = None
    """CA certificates (PEM) to trust for a rediss:// server, instead of the system's."""
    cert_file: Path | None = None
    """This client's certificate (PEM), for a rediss:// server that asks for one; needs key_file."""
    key_file: Path | None = None
    """The certificate's private key (PEM)."""
    key_prefix: str = "ratchet"
    """Prefix of every key this project writes."""
    stream_max_records: int = Field(default=1_000_000, ge=1)
    """Records, about, that the stream holds for the next night; when it is full they wait in the spool."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Longest time that one Redis call may take; callers never wait for it."""

    _url = field_validator("url")(redis_url)

    @model_validator(mode="after")
    def _tls(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file are set together or not at all")
        if (self.ca_file or self.cert_file) and urlsplit(self.url).scheme != "rediss":
            raise ValueError("ca_file and cert_file are for a rediss:// url; without TLS they would protect nothing")
        return self


class JournalSettings(_Group):
    spool_dir: Path = Path("spool")
    """Folder of the spool on local disk, for records that Redis has not taken yet."""
    durability: Literal["fsync", "relaxed"] = "fsync"
    """fsync: a record survives a power cut before its response ends. relaxed: it survives a crash of the gateway."""
    max_spool_bytes: int = Field(default=2_000_000_000, ge=1_000_000)
    """If more than this waits for Redis, the gateway reports that it is not ready; it still keeps records."""
    redact: str = ""
    """package.module:function from text to text, applied to all texts of a record; if it fails, no text is recorded."""
    redact_timeout_s: float = Field(default=2.0, gt=0)
    """Longest time that the redaction of one record may take; the answer waits for it."""


class PolicySettings(_Group):
    n: int = Field(default=4, ge=1)
    """N of requests that do not set it."""
    n_max: int = Field(default=8, ge=1)
    """N of an exploration request."""
    adapter: str | None = None
    """Adapter that answers; unset: the base model."""
    default_temperature: float | None = Field(default=None, ge=0, le=2)
    """Temperature of requests that do not set it; unset: the backend's default."""
    exploration: float = Field(default=0.02, ge=0, le=1)
    """Share of requests that draw n_max candidates and are never cut, to measure the reward curve."""
    refresh_s: float = Field(default=2.0, gt=0)
    """Interval at which the policy is read from Redis."""


class RaceSettings(_Group):
    """Limits of one race, and of all races together."""

    best_of_max: int = Field(default=16, ge=1)
    """Largest N that a caller may ask for."""
    deadline_s: float = Field(default=60.0, gt=0)
    """At the deadline the best finished candidate is the answer; without one the answer is 504."""
    quorum: float = Field(default=1.0, gt=0, le=1)
    """Share of candidates that is enough after quorum_after_s; 1 waits for all of them until the deadline."""
    quorum_after_s: float = Field(default=10.0, gt=0)
    """Time after which the quorum is enough. Exploration requests ignore it: they are never cut."""
    max_in_flight: int = Field(default=128, ge=1)
    """Candidates in flight at once, over all requests of a worker; fewer if the servers take fewer."""
    max_waiting: int = Field(default=256, ge=0)
    """Requests that may wait for their first permit; more are refused with 429, those of the key with most first."""
    queue_timeout_s: float = Field(default=5.0, gt=0)
    """Longest wait for a first permit, and of a candidate for a server that refuses it; then 429."""


class ApiSettings(_Group):
    """The API, and limits of what callers may send."""

    models: Names = Field(default=("ratchet",), min_length=1)
    """Model names that are served, separated by commas; the first is the name, the others are aliases."""
    keys_file: Path | None = None
    """File of hashed API keys (python -m gateway key new NAME), re-read when it changes. Needed beyond loopback."""
    cors_origins: Names = ()
    """Origins whose web pages may call this API (https://chat.example.com), separated by commas; * is any page."""
    operators: Literal["anyone", "admin"] = "anyone"
    """Readers of /metrics and /openapi.json: anyone, or keys with the scope admin (then there is no /docs)."""
    max_body_bytes: int = Field(default=1_000_000, ge=1_000)
    """Largest request body."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Longest time that a body may take to arrive; then 408."""
    max_headers: int = Field(default=100, ge=10)
    """Most headers of a request; then 431."""
    max_header_bytes: int = Field(default=32_768, ge=1_024)
    """Largest URL and headers of a request, together; then 431."""
    header_timeout_s: float = Field(default=10.0, gt=0)
    """Longest time that a request's headers may take to arrive; then the connection is closed."""
    idle_timeout_s: float = Field(default=75.0, gt=0)
    """Time that a connection may be idle between requests; longer than a balancer keeps its own (often 60 s)."""
    write_timeout_s: float = Field(default=30.0, gt=0)
    """Longest time that a caller may leave sent bytes unread; then the connection is cut."""
    max_messages: int = Field(default=1_000, ge=1)
    """Most messages of a conversation."""
    keep_alive_s: float = Field(default=3.0, gt=0)
    """A streamed race sends its headers after this time, and then a comment at this interval."""

    _lists = field_validator("models", "cors_origins", mode="before")(_split)

    @field_validator("cors_origins")
    @classmethod
    def _origins_only(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if not all(origin == "*" or _ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError(
                "an origin is written as browsers send it: scheme://host or scheme://host:port, in small letters, "
                "without a path, a final slash or the scheme's own port"
            )
        return origins

    @model_validator(mode="after")
    def _keys_where_needed(self) -> Self:
        if "*" in self.cors_origins and self.keys_file is None:
            raise ValueError("cors_origins=* needs keys_file: otherwise any web page could use this gateway")
        if self.operators == "admin" and self.keys_file is None:
            raise ValueError("operators=admin needs keys_file, with a key that has the scope admin")
        return self


class SchemaSettings(_Group):
    """Bounds of the JSON schemas of a request: a server compiles them while its other requests wait."""

    max_bytes: int = Field(default=400_000, ge=1)
    """Bytes of all schemas of a request together, as JSON."""
    max_depth: int = Field(default=64, ge=1, le=100)
    """Levels of nesting of a schema, references followed. OpenAI allows 10; text-generation-inference fails at 120."""
    max_properties: int = Field(default=5_000, ge=1)
    """Properties in all schemas of a request together."""
    max_enum_values: int = Field(default=2_000, ge=1)
    """Values in enums of all schemas of a request together."""


class TracingSettings(_Group):
    """The collector of OpenTelemetry's spans. OpenTelemetry's own variables set everything else."""

    endpoint: str = ""
    """Base URL of an OTLP collector over HTTP (http://collector:4318) that gets traces; empty: no traces."""

    @field_validator("endpoint")
    @classmethod
    def _http_only(cls, endpoint: str) -> str:
        return http_urls((endpoint,))[0] if endpoint else ""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback needs GATEWAY_API__KEYS_FILE."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on."""
    workers: int = Field(default=1, ge=1)
    """Worker processes; they share the port, and should share one reward server."""
    shutdown_s: float = Field(default=30.0, gt=0)
    """Time that running races have to finish after SIGTERM."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""
    log_format: Literal["json", "console"] = "json"
    """json for machines, console for people."""
    backend: BackendSettings = BackendSettings()
    reward: RewardSettings = RewardSettings()
    redis: RedisSettings = RedisSettings()
    journal: JournalSettings = JournalSettings()
    policy: PolicySettings = PolicySettings()
    race: RaceSettings = RaceSettings()
    api: ApiSettings = ApiSettings()
    schemas: SchemaSettings = SchemaSettings()
    tracing: TracingSettings = TracingSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not is_loopback(self.host) and self.api.keys_file is None:
            raise ValueError(f"host {self.host} is not loopback: set {PREFIX}API__KEYS_FILE to require API keys")
        if max(self.policy.n, self.policy.n_max) > self.race.best_of_max:
            raise ValueError(f"policy n and n_max must not exceed {PREFIX}RACE__BEST_OF_MAX")
        return self


def load() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: Names every unknown variable and every bad value.
    """
    return environment.read(Settings, PREFIX, "python -m gateway settings", without_effect=_WITHOUT_EFFECT)


def variables() -> dict[str, tuple[str, str]]:
    """Return the default and the meaning of every environment variable, in the order of the classes."""
    return environment.variables(Settings, PREFIX)
