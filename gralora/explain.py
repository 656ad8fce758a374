"""Which kernels a layer's forward and backward pass take on a GPU, and why."""

from __future__ import annotations

from typing import TypedDict

import torch

from gralora import _C
from gralora.nn.spec import check_int, make_spec

DTYPES = ("bf16", "fp16", "fp32", "fp64")
_CLUSTER = 8
_H100 = (132, _CLUSTER, True)


class Step(TypedDict):
    """One step of the adapter: which way it takes, and why."""

    step: str
    path: str
    reason: str


def explain(
    T: int,
    N: int,
    M: int,
    r: int,
    k: int,
    dtype: str = "bf16",
    processors: int | None = None,
    cluster: int | None = None,
    *,
    sm90: bool = False,
    bias: bool = False,
    dropout: bool = False,
) -> list[Step]:
    """List the steps of a forward and a backward pass with the choice that is made for each.

    It holds for contiguous tensors, factors in `dtype` or float32, no plain LoRA part and no forced
    path; rows that are not 16-byte aligned send a step to library calls. Needs no GPU.

    Args:
        T: tokens.
        N: in-features.
        M: out-features.
        r: rank that each output block sees.
        k: blocks per axis.
        dtype: of x, one of :data:`DTYPES`.
        processors: multiprocessors of the GPU; None means those of the first GPU, or of an H100.
        cluster: blocks that may form a cluster there, 1 for none; given together with `processors`,
            as the chip is one.
        sm90: whether kernels of compute capability 9.0a run there; of a chip that is given.
        bias: whether the layer has one.
        dropout: whether the adapter's input goes through dropout.

    Raises:
        TypeError: a size that is no int.
        ValueError: a size out of range, a grid that does not fit, or another dtype.

    """
    who = "explain"
    for name, value in (("T", T), ("N", N), ("M", M)):
        check_int(who, name, value, 1)
    if dtype not in DTYPES:
        raise ValueError(f"{who}: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    s = make_spec(
        N, M, r=r, k=k, alpha=None, hybrid_r=0, dropout=0.0, use_rslora=False, who=who
    ).s  # fmt: skip
    half = dtype in ("bf16", "fp16")
    if (processors is None) != (cluster is None):
        raise ValueError(
            f"{who}: processors and cluster must be given together, got processors={processors}, "
            f"cluster={cluster}"
        )
    if processors is None or cluster is None:
        processors, cluster, sm90 = _chip()
    check_int(who, "processors", processors, 1)
    check_int(who, "cluster", cluster, 1)
    n, m, columns = N // k, M // k, k * s

    gradients = {"dA": (k, n, columns), "dB": (k, m, columns)}
    aligned_blocks = {"dA": n % 8 == 0, "dB": m % 8 == 0}

    def beside(sums: tuple[str, ...]) -> list[tuple[int, int, int]]:
        """Of these gradients, what a launcher is told that may take all of them along."""
        return [gradients[name] for name in sums if all(aligned_blocks[each] for each in sums)]

    def with_base(
        depth: int, width: int, *, by_depth: bool, drops: bool, projects: bool,
        sums: tuple[str, ...] = (),
    ) -> _C.ProductSelection:  # fmt: skip
        return _C.select_extended_product(
            T=T, depth=depth, width=width, rank=columns, blocks=k, by_depth=by_depth, half=half,
            drops=drops, inner=k if projects else 0, gradients=beside(sums),
            aligned=depth % 8 == 0 and width % 8 == 0, processors=processors, cluster=cluster,
            sm90=sm90,
        )  # fmt: skip

    def of_few_tokens(
        depth: int, width: int, *, by_depth: bool, drops: bool, sums: tuple[str, ...] = ()
    ) -> _C.ThinProductSelection:
        return _C.select_thin_product(
            T=T, depth=depth, width=width, blocks=k, by_depth=by_depth, half=half, drops=drops,
            gradients=beside(sums), aligned=depth % 8 == 0 and width % 8 == 0,
            processors=processors, cluster=cluster,
        )  # fmt: skip

    def expand_y() -> _C.Choice:
        onto_bias = _C.select_expand(T=T, width=m, blocks=k, half=half, bias=bias)
        if not bias or onto_bias["path"] == "kernel":
            return onto_bias
        # The base product comes first and brings the bias; the term is added to what it wrote.
        choice = _C.select_expand(T=T, width=m, blocks=k, half=half)
        reason = f"{choice['reason']}; onto the base product and its bias"
        return {"path": choice["path"], "possible": choice["possible"], "reason": reason}

    # Rows of latents and factors are padded; those of x and dy start on 16-byte boundaries in
    # contiguous tensors where their length is a multiple of eight.
    pitch = -(-columns // 8) * 8
    H = _C.select_project(
        T=T, width=n, columns=columns, inner=k, outer=k, factor_pitch=pitch, half=half,
        drops=dropout, processors=processors, cluster=cluster, sm90=sm90,
    )  # fmt: skip
    of_output = _C.select_output_gradients(
        T=T, width=m, columns=columns, inner=k, outer=k, half=half, aligned=m % 8 == 0,
        processors=processors, cluster=cluster, sm90=sm90,
    )  # fmt: skip
    of_input = _C.select_input_gradients(
        T=T, width=n, rank=columns, blocks=k, half=half, aligned=n % 8 == 0,
        drops=dropout, processors=processors, cluster=cluster, sm90=sm90,
    )  # fmt: skip
    choices: dict[str, _C.Choice] = {}
    H_and_y = with_base(N, m, by_depth=True, drops=dropout, projects=True)
    y = with_base(N, m, by_depth=True, drops=False, projects=False)
    if H_and_y["path"] == "kernel":
        choices["H = x A, y = x W^T + H B"] = H_and_y
    else:
        choices["H = x A"] = H
        few = of_few_tokens(N, m, by_depth=True, drops=False)
        with_term = next((choice for choice in (few, y) if choice["path"] == "kernel"), None)
        choices |= {"y = x W^T + H B": with_term} if with_term else {"y = H B": expand_y()}
    G_and_dx = with_base(M, n, by_depth=False, drops=dropout, projects=True, sums=("dA", "dB"))
    if G_and_dx["path"] == "kernel":
        choices |= _along("G = dy B^T, dx = dy W + G A^T", G_and_dx, gradients, tuple(gradients))
    else:
        choices |= _pair("G = dy B^T", of_output["project"], "dB", of_output["together"])
        if of_output["together"]:
            del gradients["dB"]
        # What reads the dropped input stays apart.
        sums = tuple(name for name in gradients if not (dropout and name == "dA"))
        dx = with_base(M, n, by_depth=False, drops=dropout, projects=False, sums=sums)
        few = of_few_tokens(M, n, by_depth=False, drops=dropout, sums=sums)
        if few["path"] == "kernel":
            choices |= _pair("dx = dy W + G A^T", few, ", ".join(sums), few.get("together", False))
            if few.get("together"):
                gradients.clear()
        elif dx["path"] == "kernel":
            choices |= _along("dx = dy W + G A^T", dx, gradients, sums)
        else:
            choices |= _pair("dx = G A^T", of_input["expand"], "dA", of_input["together"])
            if of_input["together"]:
                del gradients["dA"]
    if gradients:
        choices[", ".join(gradients)] = _C.select_weight_gradient(
            T=T,
            gradients=list(gradients.values()),
            half=half,
            aligned=n % 8 == 0 and m % 8 == 0,
            drops=dropout,
            processors=processors,
            cluster=cluster,
            sm90=sm90,
        )
    return [
        {"step": step, "path": choice["path"], "reason": choice["reason"]}
        for step, choice in choices.items()
    ]


def _pair(step: str, choice: _C.Choice, gradient: str, together: bool) -> dict[str, _C.Choice]:
    """One step, with the gradient that goes in the same launch if one does."""
    if not together:
        return {step: choice}
    reason = f"{choice['reason']}; few tokens: both in one launch"
    return {
        f"{step}, {gradient}": {
            "path": choice["path"], "possible": choice["possible"], "reason": reason
        }
    }  # fmt: skip


def _along(
    step: str,
    choice: _C.ProductSelection,
    gradients: dict[str, tuple[int, int, int]],
    sums: tuple[str, ...],
) -> dict[str, _C.Choice]:
    """A base product; takes those `sums` away from `gradients` that go among its tiles."""
    along = choice.get("gradients")
    if along is None or along["path"] != "kernel":
        return {step: choice}
    names = ", ".join([step, *sums])
    for name in sums:
        del gradients[name]
    reason = f"{choice['reason']}; gradients {along['reason']}"
    return {names: {"path": choice["path"], "possible": choice["possible"], "reason": reason}}


def _chip() -> tuple[int, int, bool]:
    """The first GPU's multiprocessors, blocks to a cluster, and whether it runs kernels of 9.0a.

    Those of an H100 where there is no GPU.
    """
    if not torch.cuda.is_available():
        return _H100
    properties = torch.cuda.get_device_properties(0)
    # Newer chips run the code of an older one, unless the build was asked for theirs.
    code = f"{properties.major}{properties.minor}"
    built = any(name.rstrip("af") == code for name in _C.build_info()["cuda_architectures"])
    has_clusters = built and properties.major >= 9
    runs_sm90 = built and code == "90"
    return properties.multi_processor_count, _CLUSTER if has_clusters else 1, runs_sm90
