"""docker-compose.yml as Compose reads it: anchors, merges and `${NAME:-default}`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
VARIABLE = re.compile(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}")


def compose_file(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the file with variables put in; those that it does not know are a mistake."""
    text = FILE.read_text()
    known = {match["name"] for match in VARIABLE.finditer(text)}
    assert set(variables) <= known, f"docker-compose.yml has no {sorted(set(variables) - known)}"
    assert text.count("${") == len(VARIABLE.findall(text)), "every variable has a default"
    content = yaml.safe_load(VARIABLE.sub(lambda match: variables.get(match["name"]) or match["default"], text))
    assert isinstance(content, dict)
    return content


def parley_services(content: Mapping[str, Any], verb: str = "serve") -> dict[str, Any]:
    """Return the services of Parley's image whose command begins with a word, by name."""
    image = VARIABLE.sub(lambda match: match["default"], "${PARLEY_IMAGE:-parley:latest}")
    own = {name: service for name, service in content["services"].items() if service["image"] == image}
    return {name: service for name, service in own.items() if service["command"][0] == verb}


def environment_of(service: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that a service gets."""
    return {name: str(value) for name, value in service["environment"].items()}
