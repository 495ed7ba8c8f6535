"""Where data lies, and that two servers never share it."""

import subprocess
import sys
from pathlib import Path

import pytest

from parley_cli.data_dir import default_data_dir, open_data_dir
from parley_cli.failures import SetupError


def test_the_data_folder_is_named_by_the_environment_or_by_convention() -> None:
    assert default_data_dir({"PARLEY_DATA_DIR": "/srv/p", "XDG_DATA_HOME": "/x", "HOME": "/h"}) == Path("/srv/p")
    assert default_data_dir({"XDG_DATA_HOME": "/x", "HOME": "/h"}) == Path("/x/parley")
    assert default_data_dir({"XDG_DATA_HOME": "relative", "HOME": "/h"}) == Path("/h/.local/share/parley")
    assert default_data_dir({"HOME": "/h"}) == Path("/h/.local/share/parley")


def test_a_new_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    with open_data_dir(tmp_path / "a" / "b") as path:
        assert path.stat().st_mode & 0o777 == 0o700


def test_a_second_server_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with open_data_dir(tmp_path), pytest.raises(SetupError, match="in use by another parley server"), open_data_dir(tmp_path):
        pass
    with open_data_dir(tmp_path):
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, parley_cli.data_dir as d\n"
        f"with d.open_data_dir(pathlib.Path({str(tmp_path)!r})):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(SetupError, match=f"process {holder.pid}"), open_data_dir(tmp_path):
                pass
        finally:
            holder.kill()
    with open_data_dir(tmp_path):
        pass


def test_a_folder_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="can't use data folder"), open_data_dir(tmp_path / "file" / "data"):
        pass
