"""How Kafka is told to run on one machine."""

from pathlib import Path

from parley_engines.engine import Place
from parley_engines.kafka import KAFKA


def test_one_broker_has_few_threads(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.properties").touch()  # formatted already
    ports = {name: number for number, name in enumerate(KAFKA.ports, 1)}
    KAFKA.prepare(Place(tmp_path, tmp_path, ports, {"java": "java"}, {}))
    lines = (tmp_path / "server.properties").read_text().splitlines()
    assert {"num.network.threads=1", "num.io.threads=2"} <= set(lines)
