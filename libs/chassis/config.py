"""Settings from the environment, checked as a whole before anything starts."""

from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource

ROOT_PREFIX: Final = "PARLEY_"
TSettings = TypeVar("TSettings", bound=BaseSettings)


# What client commands read: in a shell that has them set, a server starts all the same.
CLIENT_VARIABLES: Final = frozenset({"PARLEY_COMPILED", "PARLEY_DATA_DIR", "PARLEY_SERVER", "PARLEY_TOKEN"})


class ConfigError(Exception):
    """The environment can't be used; `problems` has a line for every bad key. Values are not shown: they may be secrets."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Settings:
    """All settings of a process, by class."""

    def __init__(self, by_class: Mapping[type[BaseSettings], BaseSettings]) -> None:
        self._by_class = by_class

    def __getitem__(self, cls: type[TSettings]) -> TSettings:
        settings = self._by_class[cls]
        assert isinstance(settings, cls)
        return settings


def load_all_settings(classes: Collection[type[BaseSettings]], environ: Mapping[str, str]) -> Settings:
    """Make all settings of a process. Raises ConfigError that lists every bad key of all classes at once.

    A variable that begins with PARLEY_, names no field of any class and is nothing that clients read is bad.
    """
    problems: list[str] = []
    loaded: dict[type[BaseSettings], BaseSettings] = {}
    for cls in classes:
        try:
            loaded[cls] = load_settings(cls, environ)
        except ConfigError as error:
            problems += error.problems
    known = {_prefix(cls) + name.upper() for cls in classes for name in cls.model_fields} | CLIENT_VARIABLES
    prefixes = tuple(_prefix(cls) for cls in classes if _prefix(cls) not in ("", ROOT_PREFIX))  # load_settings looked at those
    problems += [
        f"{key}: no such setting"
        for key in environ
        if key.startswith(ROOT_PREFIX) and key not in known and not key.startswith(prefixes)
    ]
    if problems:
        raise ConfigError(sorted(problems))
    return Settings(loaded)


def _prefix(cls: type[BaseSettings]) -> str:
    return str(cls.model_config.get("env_prefix", "")).upper()


def load_settings(cls: type[TSettings], environ: Mapping[str, str]) -> TSettings:
    """Make settings from an environment and nothing else. Raises ConfigError that lists every bad key at once.

    The keys are the class's `env_prefix` and a field's name in capitals; lists and mappings are JSON. A key with the class's own
    prefix that names no field is bad (a typing error would otherwise pass unnoticed), unless the prefix is the one that all share.
    """
    prefix = _prefix(cls)
    known = {prefix + name.upper(): name for name in cls.model_fields}
    problems = [f"{key}: no such setting" for key in environ if prefix not in ("", ROOT_PREFIX) and _is_strange(key, prefix, known)]
    values, unreadable = _read(cls, environ)
    problems += [f"{prefix}{name.upper()}: {error}" for name, error in unreadable.items()]
    settings = cls.__new__(cls)
    try:
        BaseModel.__init__(settings, **values)  # not cls(...), which would fill up from the process's own environment
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            detail["msg"] = detail["msg"].removeprefix("Value error, ")  # what a check of ours says speaks for itself
            if not detail["loc"]:
                problems.append(f"{prefix or ROOT_PREFIX}*: {detail['msg']}")
            elif detail["loc"][0] not in unreadable:
                path = ".".join(str(part) for part in detail["loc"][1:])
                problems.append(f"{prefix}{str(detail['loc'][0]).upper()}{path and ' at ' + path}: {detail['msg']}")
    if problems:
        raise ConfigError(sorted(problems))
    return settings


def _is_strange(key: str, prefix: str, known: Mapping[str, str]) -> bool:
    return key.startswith(prefix) and key not in known


def _read(cls: type[BaseSettings], environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields' values that the environment gives, and why others can't be read."""
    source = EnvSettingsSource(cls)
    source.env_vars = {key.lower(): value for key, value in environ.items()}
    values: dict[str, Any] = {}
    unreadable: dict[str, str] = {}
    for name, field in cls.model_fields.items():
        raw, _, is_complex = source.get_field_value(field, name)
        try:
            value = source.prepare_field_value(name, field, raw, is_complex)
        except ValueError as error:
            unreadable[name] = f"not valid JSON ({type(error).__name__})"
            continue
        if value is not None:
            values[name] = value
    return values, unreadable
