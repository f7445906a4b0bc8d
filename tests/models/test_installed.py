import pytest

from qcompile.errors import MissingDependencyError
from qcompile.models.installed import import_optional, package_file, package_folder


def test_folder_of_an_installed_package() -> None:
    assert (package_folder("onnx_ir", "onnx-ir") / "__init__.py").is_file()


def test_missing_package_says_how_to_get_it() -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install --no-deps no-such==1") as caught:
        package_folder("no_such_package", "--no-deps no-such==1")
    assert caught.value.subject == "package 'no_such_package'"


def test_missing_file_of_another_version() -> None:
    with pytest.raises(MissingDependencyError, match=r"has no weights/best\.pth"):
        package_file("onnx_ir", "onnx-ir", "weights", "best.pth")


@pytest.mark.parametrize("name", ["no_such_package", "no_such_package.module", "json.no_such_module"])
def test_missing_module(name: str) -> None:
    with pytest.raises(MissingDependencyError, match="pip install no-such"):
        import_optional(name, "no-such")


def test_missing_requirement_of_an_installed_module_is_not_hidden(tmp_path, monkeypatch) -> None:
    (tmp_path / "half_installed.py").write_text("import something_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_needs"):
        import_optional("half_installed", "half-installed")
