"""Settings with bounds: flags over PREMONITOR_* environment variables over the site folder over defaults; no secrets in the site folder."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from features.errors import InputError

Stage = Literal["admit", "score"]


class Settings(BaseSettings):
    """Everything that a worker can be told. An environment variable is PREMONITOR_ and the name in capitals."""

    model_config = SettingsConfigDict(env_prefix="PREMONITOR_", hide_input_in_errors=True, extra="ignore", frozen=True)

    kafka_bootstrap: str = Field(default="127.0.0.1:9092", min_length=3)
    kafka_tls: bool = False
    kafka_ca_file: Path | None = None
    kafka_user: str | None = None
    kafka_password: SecretStr | None = None
    kafka_password_file: Path | None = None
    kafka_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    kafka_allow_plaintext_sasl: bool = False
    """A password over an unencrypted connection; refused unless told."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    redis_user: str | None = None
    redis_password: SecretStr | None = None
    redis_password_file: Path | None = None
    redis_ca_file: Path | None = None
    allow_eviction: bool = False
    """Start although Redis may evict histories (demo only)."""
    prefix: str = ""
    """Of topics and keys; a generation."""
    worker_name: str = Field(default="worker-1", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Static membership: unique among the workers of a group, the same after a restart."""
    stages: list[Stage] = ["admit", "score"]
    known_time: Literal["append", "given"] = "append"
    """`append`: known when it reached `facts` (live). `given`: the events carry it (history through the feeds)."""
    batch_records_max: int = Field(default=8_000, ge=1, le=20_000)
    polls_ahead: int = Field(default=1, ge=1, le=8)
    """Polls that the agent has in hand or waiting. What is not polled yet comes in larger batches: the fewer, the faster under load."""
    commit_every_s: float = Field(default=1.0, ge=0.05, le=60)
    session_timeout_s: float = Field(default=10.0, ge=2, le=120)
    gather_ms: int = Field(default=15, ge=0, le=1_000)
    """So long the records of feeds gather before they are polled again; what comes while nothing else does is taken up at once."""
    patience_s: float = Field(default=15.0, ge=1, le=300)
    """Longest wait for one batch before it is read again."""
    attempts_max: int = Field(default=8, ge=1, le=100)
    """Failures in a row of one partition before the worker gives up with a non-zero exit."""
    align_wait_s: float = Field(default=1.0, ge=0, le=60)
    """A lagging feed that delivers nothing holds the others back for so long at most (S13)."""
    align_records_max: int = Field(default=20_000, ge=100, le=1_000_000)
    tick_every_s: float = Field(default=60.0, ge=0.05, le=3_600)
    idle_check_s: float = Field(default=1.0, ge=0.05, le=60)
    stop_within_s: float = Field(default=20.0, ge=1, le=300)
    """After so long a stop becomes an exit."""
    health_port: int | None = Field(default=None, ge=0, le=65_535)
    """Liveness, readiness and metrics on 127.0.0.1; 0: any free port."""
    health_host: str = "127.0.0.1"
    crash_at: str = ""
    """For tests of crashes: `step:n` ends the process at the n-th pass of a named step."""

    @model_validator(mode="after")
    def _sasl_needs_tls(self) -> Settings:
        if self.kafka_user and not self.kafka_tls and not self.kafka_allow_plaintext_sasl:
            raise ValueError("a Kafka user without TLS sends the password in the clear: set PREMONITOR_KAFKA_TLS=true")
        return self

    def kafka(self) -> dict[str, Any]:
        """Keyword arguments of every aiokafka client."""
        options: dict[str, Any] = {"bootstrap_servers": self.kafka_bootstrap}
        if self.kafka_tls:
            _exists(self.kafka_ca_file)
            options["ssl_context"] = ssl.create_default_context(cafile=str(self.kafka_ca_file) if self.kafka_ca_file else None)
        if self.kafka_user:
            options["security_protocol"] = "SASL_SSL" if self.kafka_tls else "SASL_PLAINTEXT"
            options["sasl_mechanism"] = self.kafka_mechanism
            options["sasl_plain_username"] = self.kafka_user
            password = _secret(self.kafka_password, self.kafka_password_file)
            if password is None:
                raise InputError("a Kafka user without a password: set PREMONITOR_KAFKA_PASSWORD or PREMONITOR_KAFKA_PASSWORD_FILE")
            options["sasl_plain_password"] = password
        elif self.kafka_tls:
            options["security_protocol"] = "SSL"
        return options

    def redis_secret(self) -> str | None:
        """The password for Redis, if there is one."""
        return _secret(self.redis_password, self.redis_password_file)


def _exists(file: Path | None) -> None:
    if file is not None and not file.is_file():
        raise InputError(f"the file {file} does not exist")


def _secret(value: SecretStr | None, file: Path | None) -> str | None:
    if file is not None:
        _exists(file)
        return file.read_text(encoding="utf-8").strip()
    return value.get_secret_value() if value is not None else None


def environment() -> dict[str, Any]:
    """Setting → what a PREMONITOR_* variable of the environment says, of those that are set; unchecked."""
    return EnvSettingsSource(Settings)()


def load(site: Mapping[str, Any] | None = None, /, **flags: Any) -> Settings:
    """Settings from flags (None: not given), environment, site folder and defaults, the first that says something.

    Args:
        site: Setting → value, of the site folder's file.
        flags: Setting → value.
    Raises:
        InputError: a value out of its bounds; names the setting, never its value.
    """
    try:
        beneath = {name: value for name, value in site.items() if name not in environment()} if site else {}
        return Settings(**beneath | {name: value for name, value in flags.items() if value is not None})
    except SettingsError as error:
        raise InputError(f"{error}: lists are written as JSON, such as PREMONITOR_STAGES='[\"admit\"]'") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = ".".join(map(str, fault["loc"])) or "settings"
        raise InputError(f"{name}: {fault['msg']}") from None
