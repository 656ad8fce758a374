"""Which CUDA toolkit a build uses."""

from __future__ import annotations

import pytest

from gralora_build.toolkit import find_toolkit, inspect_nvcc, wheel_requirements


def search(env=None, roots=(), site_folders=(), major=13):
    return find_toolkit(
        major, env={"PATH": "", **(env or {})}, roots=roots, site_folders=site_folders
    )


@pytest.fixture
def nvcc(make_toolkit, tmp_path):
    return make_toolkit(tmp_path / "cuda-13.0")


def test_nothing_there():
    result = search()
    assert result.toolkit is None
    assert result.rejected == ()


def test_version_headers_and_runtime_of_a_toolkit(nvcc):
    toolkit = inspect_nvcc(nvcc)
    root = nvcc.parents[1]
    assert toolkit.version == "13.0.88"
    assert toolkit.root == root
    assert toolkit.include == root / "include"
    assert toolkit.cudart_static == root / "lib64" / "libcudart_static.a"


def test_the_wheels_keep_the_runtime_in_lib(make_toolkit, tmp_path):
    nvcc = make_toolkit(tmp_path / "cu13", library="lib")
    assert inspect_nvcc(nvcc).cudart_static == tmp_path / "cu13" / "lib" / "libcudart_static.a"


def test_headers_and_runtime_under_targets(nvcc):
    root = nvcc.parents[1]
    target = root / "targets" / "x86_64-linux"
    target.mkdir(parents=True)
    (root / "include").rename(target / "include")
    (root / "lib64").rename(target / "lib")
    toolkit = inspect_nvcc(nvcc)
    assert toolkit.include == target / "include"
    assert toolkit.cudart_static == target / "lib" / "libcudart_static.a"


def test_a_script_far_from_the_toolkit_leads_to_it(nvcc, tmp_path):
    script = tmp_path / "tools" / "nvcc"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {nvcc} "$@"\n')
    script.chmod(0o755)
    assert inspect_nvcc(script).root == nvcc.parents[1]


def test_a_link_far_from_the_toolkit_leads_to_it(nvcc, tmp_path):
    link = tmp_path / "tools" / "nvcc"
    link.parent.mkdir()
    link.symlink_to(nvcc)
    assert inspect_nvcc(link).root == nvcc.parents[1]


def test_each_place_wins_over_those_after_it(make_toolkit, tmp_path):
    """CUDACXX, CUDA_HOME, CUDA_PATH, PATH, the usual folder, the wheels."""
    places = {}
    for name in ("cudacxx", "home", "path", "on-path", "usual"):
        places[name] = make_toolkit(tmp_path / name)
    places["wheels"] = make_toolkit(tmp_path / "site" / "nvidia" / "cu13")
    env = {
        "CUDACXX": str(places["cudacxx"]),
        "CUDA_HOME": str(tmp_path / "home"),
        "CUDA_PATH": str(tmp_path / "path"),
        # The tools that the stand-in itself needs come after it.
        "PATH": f"{tmp_path / 'on-path' / 'bin'}:/usr/bin:/bin",
    }
    found = []
    for variable in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", None):
        result = search(env, roots=[tmp_path / "usual"], site_folders=[tmp_path / "site"])
        found.append(result.toolkit.root.name)
        env.pop(variable, None)
    places["on-path"].unlink()
    env["PATH"] = ""
    found.append(search(env, [tmp_path / "usual"], [tmp_path / "site"]).toolkit.root.name)
    found.append(search(env, [], [tmp_path / "site"]).toolkit.root.name)
    assert found == ["cudacxx", "home", "path", "on-path", "usual", "cu13"]


def test_another_major_version_is_passed_over_and_reported(make_toolkit, nvcc, tmp_path):
    other = make_toolkit(tmp_path / "cuda-12", version="12.8.93")
    result = search({"CUDA_HOME": str(tmp_path / "cuda-12")}, roots=[nvcc.parents[1]])
    assert result.toolkit.version == "13.0.88"
    assert result.rejected == (f"{other} is CUDA 12.8.93",)


def test_wheels_of_another_major_version_are_not_looked_at(make_toolkit, tmp_path):
    make_toolkit(tmp_path / "nvidia" / "cu13")
    assert search(site_folders=[tmp_path], major=14).toolkit is None


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        pytest.param("include/crt/host_defines.h", "lacks the headers", id="headers"),
        pytest.param("lib64/libcudart_static.a", "lacks libcudart_static.a", id="runtime"),
    ],
)
def test_an_incomplete_toolkit_is_passed_over_and_reported(nvcc, missing, complaint):
    (nvcc.parents[1] / missing).unlink()
    result = search({"CUDACXX": str(nvcc)})
    assert result.toolkit is None
    assert complaint in result.rejected[0]


def test_an_nvcc_that_does_not_start_is_passed_over_and_reported(tmp_path):
    broken = tmp_path / "nvcc"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    result = search({"CUDACXX": str(broken)})
    assert result.toolkit is None
    assert result.rejected == (f"{broken}: does not say its version",)


def test_wheels_of_the_compiler_have_the_minor_version_of_torch():
    assert wheel_requirements("13.0") == ["cuda-toolkit[cccl,nvcc]==13.0.*"]


def test_wheels_of_the_compiler_follow_a_torch_that_is_yet_to_come():
    assert wheel_requirements() == ["cuda-toolkit[cccl,nvcc]"]


def test_the_wheels_of_cuda_12_have_no_compiler():
    assert wheel_requirements("12.8") == []
