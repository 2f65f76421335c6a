"""The row kernels as a GPU's compiler takes them: rows by wide loads, weights by narrow ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.pretrain.models.compute.test_row_kernels import AT_ANY_PLACE, ROOT

COMPILED = """
import json, re, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pretrain.models.compute import row_kernels, row_launch

KINDS = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32"}
FLOATS = {"statistics", "sums", "folded", "slopes", "weight", "bias", "pending", "of_bias", "of_weight", "both"}
ROWS = {"rows", "gradient", "output", "added", "passed", "of_rows"}
LAUNCHED = {
    "_moments": [{}],
    "_statistics": [{"PENDING": True, "TILE": 64, "CHANNELS": 32}],
    "_fold": [{"EACH": 256, "TILE": 64, "CHANNELS": 32}],
    "_slope_sums": [{"TILE": 64, "CHANNELS": 32}],
    "_slopes": [{"ADDED": added, "RELU": True} for added in (False, True)],
    "_apply": [{"ADD": add, "RELU": relu} for add in (False, True) for relu in (False, True)],
    "_inner": [{"RELU": relu} for relu in (False, True)],
}
found = {}
for name, cases in LAUNCHED.items():
    kernel = getattr(row_kernels, name)
    shape = row_launch.SHAPES.get(name[1:])
    free = {each.name for each in kernel.params if each.do_not_specialize_on_alignment}
    found[name] = {"free": sorted(free), "wide": []}
    for number, constants in enumerate(cases):
        for dtype in KINDS if number == 0 else ["bf16"]:
            if shape:
                constants = {**constants, "UNROLLED": shape.unrolled, "BLOCK": shape.block}
            signature, aligned = {}, {}
            for place, argument in enumerate(kernel.arg_names):
                if argument in constants:
                    signature[argument] = "constexpr"
                elif argument in ROWS | FLOATS:
                    signature[argument] = KINDS[dtype] if argument in ROWS else "*fp32"
                    if argument not in free:
                        aligned[(place,)] = [["tt.divisibility", 16]]
                else:
                    signature[argument] = "fp32" if argument in ("eps", "share") else "i32"
                    if argument == "total":
                        aligned[(place,)] = [["tt.divisibility", 16]]
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
            options = {"num_warps": shape.warps if shape else 4}
            made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
            assert made.asm["cubin"]
            loads = re.findall(r"ld\\.global\\S*?\\.(v\\d)\\.", made.asm["ptx"])
            stores = re.findall(r"st\\.global\\S*?\\.(v\\d)\\.", made.asm["ptx"])
            found[name]["wide"].append([dtype, len(loads), len(stores)])
            if free:  # nothing said of any address but these: not one wide access may be left
                narrow = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs={})
                made = triton.compile(narrow, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
                found[name]["narrow"] = len(re.findall(r"(ld|st)\\.global\\S*?\\.v\\d\\.", made.asm["ptx"]))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_gpus_compiler_takes_them_and_reads_rows_in_wide_loads_and_weights_in_narrow_ones() -> None:
    """For an H100 or H200, by Triton's own compiler, which needs no GPU to be there."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert {name: set(kernel["free"]) for name, kernel in result.items() if kernel["free"]} == AT_ANY_PLACE
    assert result["_statistics"]["narrow"] == 0
    for name in ("_moments", "_slopes", "_apply", "_inner"):
        for dtype, loads, _ in result[name]["wide"]:
            assert loads >= 2, (name, dtype)
    assert all(stores >= 2 for name in ("_apply", "_inner") for _, _, stores in result[name]["wide"])
