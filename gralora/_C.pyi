from collections.abc import Sequence
from typing import NotRequired, TypedDict

from torch import Tensor

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

class Choice(TypedDict):
    path: str
    possible: bool
    reason: str

class ProjectSelection(Choice):
    tile: tuple[int, int]
    splits: int
    kernel: str

class ExpandSelection(Choice):
    tile: tuple[int, int]

class GradientsSelection(Choice):
    counters: bool
    span: int

class ProductSelection(ExpandSelection):
    in_tiles: bool
    gradients: NotRequired[GradientsSelection]

class ThinProductSelection(Choice):
    tile: tuple[int, int]
    splits: int
    together: NotRequired[bool]

class WeightGradientSelection(Choice):
    tile: tuple[int, int]
    splits: int
    kernel: str

class OutputGradientsSelection(TypedDict):
    together: bool
    project: ProjectSelection
    sums: WeightGradientSelection

class InputGradientsSelection(TypedDict):
    together: bool
    expand: ExpandSelection
    sums: WeightGradientSelection

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
    factor_block_stride: int | None = None,
    factor_pitch: int | None = None,
    factor_transposed: bool = False,
    address: int = 0,
    half: bool = True,
    drops: bool = False,
    processors: int = 132,
    cluster: int = 8,
    sm90: bool = True,
) -> ProjectSelection: ...
def select_expand(
    *,
    T: int,
    width: int,
    blocks: int = 2,
    half: bool = True,
    aligned: bool = True,
    bias: bool = False,
    drops: bool = False,
) -> ExpandSelection: ...
def select_extended_product(
    *,
    T: int,
    depth: int,
    width: int,
    rank: int,
    blocks: int = 2,
    half: bool = True,
    aligned: bool = True,
    matched: bool = True,
    by_depth: bool = False,
    drops: bool = False,
    terms: int = 1,
    inner: int = 0,
    more: Sequence[tuple[int, int]] = (),
    gradients: Sequence[tuple[int, int, int]] = (),
    processors: int = 132,
    cluster: int = 8,
    sm90: bool = True,
) -> ProductSelection: ...
def select_weight_gradient(
    *,
    T: int,
    gradients: Sequence[tuple[int, int, int]],
    half: bool = True,
    aligned: bool = True,
    narrow: bool = True,
    drops: bool = False,
    processors: int = 132,
    cluster: int = 8,
    sm90: bool = True,
) -> WeightGradientSelection: ...
def select_output_gradients(
    *,
    T: int,
    width: int,
    columns: int,
    inner: int = 2,
    outer: int = 2,
    half: bool = True,
    aligned: bool = True,
    processors: int = 132,
    cluster: int = 8,
    sm90: bool = True,
) -> OutputGradientsSelection: ...
def select_input_gradients(
    *,
    T: int,
    width: int,
    rank: int,
    blocks: int = 2,
    half: bool = True,
    aligned: bool = True,
    aligned_factor: bool = True,
    drops: bool = False,
    processors: int = 132,
    cluster: int = 8,
    sm90: bool = True,
) -> InputGradientsSelection: ...
def select_thin_product(
    *,
    T: int,
    depth: int,
    width: int,
    blocks: int = 2,
    by_depth: bool = True,
    half: bool = True,
    aligned: bool = True,
    drops: bool = False,
    gradients: Sequence[tuple[int, int, int]] = (),
    processors: int = 132,
    cluster: int = 8,
) -> ThinProductSelection: ...
def forced_path() -> str | None: ...
def force_path(name: str | None) -> None: ...
def saves_latents() -> bool: ...
def set_saves_latents(saves: bool) -> None: ...
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor | None,
    B: Tensor | None,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    scaling: float,
    dropout_p: float,
    training: bool,
    /,
) -> Tensor: ...
def add(
    y: Tensor,
    x: Tensor,
    A: Tensor | None,
    B: Tensor | None,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    scaling: float,
    dropout_p: float,
    training: bool,
    /,
) -> Tensor: ...
