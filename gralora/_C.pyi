from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    torch_version: str
    cuda_version: str
    cuda_architectures: list[str]
    cuda_ptx: list[str]
    cuda_built: bool

class MergeSelection(TypedDict):
    path: str
    transposed: bool
    reason: str

class ProjectSelection(TypedDict):
    path: str
    tile: tuple[int, int] | None
    reason: str

def build_info() -> BuildInfo: ...
def select_merge(
    *,
    m: int,
    n: int,
    row_stride: int,
    column_stride: int = 1,
    element_bytes: int = 2,
    address: int = 0,
    wide_factors: bool = False,
) -> MergeSelection: ...
def select_project(
    *,
    T: int,
    width: int,
    columns: int,
    inner: int = 2,
    outer: int = 2,
    x_row_stride: int | None = None,
    factor_transposed: bool = False,
    address: int = 0,
    half: bool = True,
    processors: int = 132,
) -> ProjectSelection: ...
