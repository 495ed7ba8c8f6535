from pathlib import Path

import pytest
from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from chassis.config import ConfigError, load_settings


class ThingSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="PARLEY_THING_", frozen=True)

    listen: str = "127.0.0.1:0"
    size_bytes: int = Field(10, ge=1)
    ratio: float = 0.5
    data: Path | None = None
    verbose: bool = False
    names: list[str] = []
    limits: dict[str, int] = {}
    secret: SecretStr = SecretStr("")


class SharedSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="PARLEY_", frozen=True)

    level: str = "info"


class PickySettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="PARLEY_PICKY_", frozen=True)

    low: int
    high: int = 5

    @model_validator(mode="after")
    def check(self):
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self


def problems_of(cls, environ):
    with pytest.raises(ConfigError) as caught:
        load_settings(cls, environ)
    assert str(caught.value).splitlines() == caught.value.problems
    return caught.value.problems


def test_nothing_set_gives_the_defaults():
    settings = load_settings(ThingSettings, {"PATH": "/bin"})
    assert settings == ThingSettings()
    assert isinstance(settings, ThingSettings)


def test_values_are_converted():
    environ = {
        "PARLEY_THING_LISTEN": "0.0.0.0:1",
        "PARLEY_THING_SIZE_BYTES": "7",
        "PARLEY_THING_RATIO": "0.25",
        "PARLEY_THING_DATA": "some/folder",
        "PARLEY_THING_VERBOSE": "true",
        "PARLEY_THING_NAMES": '["a", "b"]',
        "PARLEY_THING_LIMITS": '{"x": 3}',
    }
    settings = load_settings(ThingSettings, environ)
    assert (settings.listen, settings.size_bytes, settings.ratio) == ("0.0.0.0:1", 7, 0.25)
    assert (settings.data, settings.verbose, settings.names, settings.limits) == (Path("some/folder"), True, ["a", "b"], {"x": 3})


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        load_settings(ThingSettings, {}).listen = "elsewhere"


def test_every_bad_key_is_named_at_once_and_no_value():
    environ = {
        "PARLEY_THING_SIZE_BYTES": "0",
        "PARLEY_THING_RATIO": "hunter2",
        "PARLEY_THING_NAMES": "[hunter2",
        "PARLEY_THING_LIMITS": '{"x": "hunter2"}',
        "PARLEY_THING_LISTN": "hunter2",
        "PARLEY_OTHER_KEY": "x",
    }
    problems = problems_of(ThingSettings, environ)
    assert [problem.split(":")[0] for problem in problems] == [
        "PARLEY_THING_LIMITS at x",
        "PARLEY_THING_LISTN",
        "PARLEY_THING_NAMES",
        "PARLEY_THING_RATIO",
        "PARLEY_THING_SIZE_BYTES",
    ]
    assert "hunter2" not in "".join(problems)
    assert "PARLEY_THING_LISTN: no such setting" in problems


def test_a_missing_value_and_a_broken_rule_name_their_keys():
    assert problems_of(PickySettings, {}) == ["PARLEY_PICKY_LOW: Field required"]
    assert problems_of(PickySettings, {"PARLEY_PICKY_LOW": "6"}) == ["PARLEY_PICKY_*: low must not be above high"]


def test_the_shared_prefix_leaves_the_keys_of_others_alone():
    assert load_settings(SharedSettings, {"PARLEY_THING_LISTEN": "x", "PARLEY_LEVEL": "debug"}).level == "debug"


def test_the_environment_of_the_process_is_not_read(monkeypatch):
    monkeypatch.setenv("PARLEY_THING_SIZE_BYTES", "99")
    assert load_settings(ThingSettings, {}).size_bytes == 10


def test_a_secret_is_not_shown():
    settings = load_settings(ThingSettings, {"PARLEY_THING_SECRET": "hunter2"})
    assert settings.secret.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings)
