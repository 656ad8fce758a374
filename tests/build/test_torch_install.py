"""Which torch a build is made against."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

from gralora_build import torch_install
from gralora_build.errors import BuildError
from gralora_build.torch_install import find_torch


@pytest.fixture
def isolated(monkeypatch, tmp_path, empty_python):
    """The hooks as pip runs them: the target's interpreter, its packages hidden by variables."""
    build_environment = tmp_path / "build-environment"
    build_environment.mkdir()
    monkeypatch.setattr(sys, "executable", str(empty_python))
    monkeypatch.setenv("PYTHONPATH", str(build_environment))
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    return build_environment


@pytest.fixture
def site_packages(empty_python):
    """The folder of the target's packages, empty again after the test."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    folder = empty_python.parents[1] / "lib" / version / "site-packages"
    before = set(folder.iterdir())
    yield folder
    for path in set(folder.iterdir()) - before:
        path.unlink()


def test_no_torch_anywhere(isolated):
    assert find_torch() is None


def test_torch_of_the_build_environment_when_the_target_has_none(isolated, make_torch):
    make_torch(isolated, "2.15.0+cu130", cuda="13.0")
    found = find_torch()
    assert (found.version, found.cuda) == ("2.15.0+cu130", "13.0")
    assert found.root == (isolated / "torch").resolve()


def test_torch_of_the_target_wins_over_the_build_environment(
    isolated, make_torch, site_packages, tmp_path
):
    make_torch(isolated, "2.15.0")
    make_torch(tmp_path / "elsewhere", "2.13.0+cpu")
    (site_packages / "path.pth").write_text(str(tmp_path / "elsewhere"))
    assert find_torch().version == "2.13.0+cpu"


def test_a_named_folder_wins_over_the_target(isolated, make_torch, site_packages, tmp_path):
    make_torch(tmp_path / "target", "2.13.0")
    (site_packages / "path.pth").write_text(str(tmp_path / "target"))
    named = make_torch(tmp_path / "named", "2.12.0")
    assert find_torch(str(named)).version == "2.12.0"


def test_a_cpu_torch_has_no_cuda_version(isolated, make_torch):
    make_torch(isolated, "2.13.0+cpu", cuda=None)
    assert find_torch().cuda == ""


def test_output_of_the_import_does_not_disturb(isolated, make_torch):
    package = make_torch(isolated, "2.14.1") / "torch" / "__init__.py"
    package.write_text(package.read_text() + 'print("a notice")\n')
    assert find_torch().version == "2.14.1"


def test_release_of_a_version_with_a_local_part():
    install = torch_install.TorchInstall(Path("/t"), "2.14.1+cu130", "13.0", True)
    assert install.release == (2, 14)


def test_a_folder_without_torch_is_refused(tmp_path):
    with pytest.raises(BuildError, match=r"a folder that contains the torch package, got .*empty"):
        find_torch(str(tmp_path / "empty"))


def test_the_folder_of_torch_itself_is_refused(make_torch, tmp_path):
    make_torch(tmp_path)
    with pytest.raises(BuildError, match="must be a folder that contains the torch package"):
        find_torch(str(tmp_path / "torch"))


def test_a_torch_that_does_not_import_is_reported_with_its_error(isolated, make_torch):
    package = make_torch(isolated) / "torch" / "__init__.py"
    package.write_text('raise ImportError("libc10.so: undefined symbol")')
    with pytest.raises(BuildError, match=r"does not import: .*libc10\.so: undefined symbol"):
        find_torch()


def test_a_missing_module_within_torch_is_not_a_missing_torch(isolated, make_torch):
    package = make_torch(isolated) / "torch" / "__init__.py"
    package.write_text("import a_module_that_is_not_there")
    with pytest.raises(BuildError, match="a_module_that_is_not_there"):
        find_torch()


def test_an_old_torch_is_refused_with_the_oldest_that_works(isolated, make_torch):
    make_torch(isolated, "2.9.1")
    with pytest.raises(BuildError, match=r"at least 2\.11, got 2\.9\.1"):
        find_torch()


def test_minor_versions_are_compared_as_numbers(isolated, make_torch):
    make_torch(isolated, "2.11.0")
    assert find_torch().release == (2, 11)


def test_the_real_torch_is_found_with_its_headers_and_libraries():
    import torch

    found = find_torch(str(Path(torch.__file__).parents[1]))
    assert found.version == torch.__version__
    assert (found.root / "include" / "torch" / "library.h").is_file()
    suffix = sysconfig.get_config_var("SHLIB_SUFFIX")
    assert (found.root / "lib" / f"libtorch_cpu{suffix}").is_file()
