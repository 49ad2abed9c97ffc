"""Names find things, near misses are answered with the near name, and plugins of one file name are two."""

import pytest

from data.registry import Registry, UnknownNameError, load_plugin, suggest


def test_two_things_of_one_name_are_refused_and_one_thing_twice_is_not():
    registry: Registry[type] = Registry("gadget", "data.datasets")
    registry._loaded = True
    first = type("First", (), {})
    registry.register("x")(first)
    registry.register("x")(first)
    with pytest.raises(ValueError, match=r"two gadgets are called 'x': .*First and .*Second; rename one"):
        registry.register("x")(type("Second", (), {}))
    assert registry.get("x") is first
    with pytest.raises(UnknownNameError, match=r"^no gadget called 'y'. Known: x$"):
        registry.get("y")


def test_suggestions():
    assert suggest("ucf_crimes", ["ucf_crime", "folder"]) == " Did you mean 'ucf_crime'? Known: ucf_crime, folder"
    assert suggest("zzz", []) == " Known: none"


def test_plugins_of_one_file_name_in_two_folders_are_both_loaded(tmp_path):
    log = tmp_path / "log"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        code = f"with open({str(log)!r}, 'a') as file:\n    file.write({folder!r})"
        (tmp_path / folder / "mine.py").write_text(code)
    for folder in ("a", "b", "a"):
        load_plugin(tmp_path / folder / "mine.py")
    assert log.read_text() == "ab"


def test_a_plugin_that_failed_is_tried_again(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("1 / 0")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            load_plugin(path)


@pytest.mark.parametrize(("name", "message"), [("nope.py", "no plugin file .*nope.py"), ("x.txt", "not a Python file")])
def test_what_is_no_plugin(tmp_path, name, message):
    (tmp_path / "x.txt").touch()
    with pytest.raises(FileNotFoundError, match=message):
        load_plugin(tmp_path / name)
