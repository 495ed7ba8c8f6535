"""Where data lies."""

from pathlib import Path

from parley_cli.data_dir import default_data_dir


def test_the_data_folder_is_named_by_the_environment_or_by_convention() -> None:
    assert default_data_dir({"PARLEY_DATA_DIR": "/srv/p", "XDG_DATA_HOME": "/x", "HOME": "/h"}) == Path("/srv/p")
    assert default_data_dir({"XDG_DATA_HOME": "/x", "HOME": "/h"}) == Path("/x/parley")
    assert default_data_dir({"XDG_DATA_HOME": "relative", "HOME": "/h"}) == Path("/h/.local/share/parley")
    assert default_data_dir({"HOME": "/h"}) == Path("/h/.local/share/parley")
