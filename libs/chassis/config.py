"""Settings from the environment: checked as a whole, before anything starts."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

S = TypeVar("S", bound=BaseSettings)


class ConfigError(Exception):
    """Settings that can't be used; the text has a line for each."""


def load_settings(cls: type[S], environ: Mapping[str, str]) -> S:
    """Read a settings class from an environment. Raises ConfigError that names every bad variable."""
    prefix = cls.model_config.get("env_prefix", "")
    values = {}
    problems = []
    for name, field in cls.model_fields.items():
        variable = (prefix + name).upper()
        if variable in environ:
            values[name] = environ[variable]
        elif field.is_required():
            problems.append(f"{variable}: is required")
    try:
        settings = cls.model_validate(values)
    except ValidationError as error:
        for problem in error.errors():
            variable = prefix + "_".join(map(str, problem["loc"])).upper() if problem["loc"] else prefix.rstrip("_")
            problems.append(f"{variable}: {problem['msg'].removeprefix('Value error, ')}")
        raise ConfigError("\n".join(problems)) from error
    if problems:
        raise ConfigError("\n".join(problems))
    return settings
