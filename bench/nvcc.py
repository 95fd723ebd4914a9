"""What nvcc makes of the CUDA kernels: ``python bench/nvcc.py kernels.json [--nvdisasm PROGRAM] [--before DIR]``.

Registers, spills, shared memory and processor time for one architecture; with a disassembler (Triton's package has one)
also the instructions of the loops that count most, by what carries them out. `--before`: another checkout, whose loops
are counted too. Needs no GPU, and measures none.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import resource
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
OPERATIONS = ("scales", "encode", "decode", "sum_trits", "clip", "pack", "validate")
FLAGS = ("-std=c++17", "-O3", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")

#: A stretch of a kernel without branches: between two of a kind of instruction, counted from 0 (or from the end).
#: encode: the last four rows of a unit, drawn, clipped and coded: 16 elements a lane; no loads. decode: 19 rows.
LOOPS = {
    "encode float32, two_bit and base3: four rows": ("encode", r"encode_array(IfL?.*E0E|IfEE)", "F2I", 63, 79),
    "encode bfloat16, two_bit and base3: four rows": (
        *("encode", r"encode_array(INS_8BFloat16EL?.*E0E|INS_8BFloat16EEE)"),
        *("F2I", 63, 79),
    ),
    "decode float32, two_bit: 19 rows": ("decode", "decode_arrayIf", "STG.E.EF", 21, 40),
    "decode float32, base3: 19 rows": ("decode", "decode_arrayIf", "STG.E.EF", 1, 20),
    "decode bfloat16, two_bit: 19 rows": ("decode", "decode_arrayINS_8BFloat16", "STG.E.EF", 21, 40),
}

#: A processor of compute capability 9.0 starts four instructions a cycle, two of them integer ones (a product is a
#: floating-point unit's work there), and a quarter of one conversion, by instructions of a whole warp.
UNITS = {
    "integer": "LOP3 SHF PRMT IADD3 VIADD ISETP FMNMX SEL LEA VIMNMX FSETP FSEL PLOP3 IABS SGXT BMSK MOV CS2R",
    "product": "IMAD",
    "float": "FFMA FMUL FADD",
    "conversion": "F2I I2F F2F MUFU POPC",
    "memory": "LD LDG LDS LDC ST STG STS ATOMG SHFL",
}
UNIT_OF = {name: unit for unit, names in UNITS.items() for name in names.split()}


def compiled(source: Path, folder: Path, operation: str, architecture: str) -> tuple[str, Path]:
    """What ptxas said of a file's kernels, and the code."""
    code = folder / f"{operation}.cubin"
    path = source / "csrc" / "kernels" / f"{operation}_cuda.cu"
    command = ["nvcc", "-cubin", f"-arch={architecture}", *FLAGS, "-Xptxas", "-v", str(path), "-o", str(code)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr, code


def readable(name: str) -> str:
    """A kernel's name with its template's arguments, without its own."""
    plain = subprocess.run(["c++filt", name], check=True, capture_output=True, text=True).stdout.strip()
    plain = re.sub(r"\(anonymous namespace\)::|terngrad::cuda::_GLOBAL__\w+::|terngrad::(cuda::)?|^void ", "", plain)
    return re.sub(r"\((?!cuda|Scale)[^()]*\)$", "", plain)


def resources(text: str) -> dict[str, dict[str, int]]:
    found = {}
    for name, about in re.findall(r"Compiling entry function '(\w+)' for '\w+'\n(.*?registers[^\n]*)", text, re.DOTALL):
        numbers = {
            "registers": r"Used (\d+) registers",
            "stack_bytes": r"(\d+) bytes stack frame",
            "spill_bytes": r"(\d+) bytes spill stores",
            "shared_bytes": r"(\d+) bytes smem",
        }
        match = {key: re.search(pattern, about) for key, pattern in numbers.items()}
        found[readable(name)] = {key: int(each[1]) if each else 0 for key, each in match.items()}
    return found


def instructions(listing: str, kernel: str) -> list[str]:
    """The opcodes of the first kernel whose name matches."""
    found: list[str] = []
    inside = False
    for line in listing.splitlines():
        if line.startswith(".text."):
            if found:
                break
            inside = re.search(kernel, line) is not None
        match = re.match(r"(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*).*;", re.sub(r"/\*[0-9a-fx]+\*/", "", line).strip())
        if inside and match:
            found.append(match[1])
    return found


def loops(codes: dict[str, Path], nvdisasm: str) -> dict[str, dict[str, int]]:
    listings = {
        operation: subprocess.run([nvdisasm, "-c", codes[operation]], check=True, capture_output=True, text=True).stdout
        for operation in {loop[0] for loop in LOOPS.values()}
    }
    found = {}
    for name, (operation, kernel, marker, first, last) in LOOPS.items():
        all_of_it = instructions(listings[operation], kernel)
        at = [i for i, opcode in enumerate(all_of_it) if opcode.startswith(marker)]
        stretch = all_of_it[at[first] + 1 : at[last] + 1]
        counts = collections.Counter(UNIT_OF.get(opcode.split(".")[0], "other") for opcode in stretch)
        found[name] = {"all": len(stretch), **dict(sorted(counts.items()))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("--architecture", default="sm_90")
    parser.add_argument("--nvdisasm")
    parser.add_argument("--before", type=Path)
    options = parser.parse_args()
    version = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    result: dict[str, object] = {
        "what": "What ptxas says of each kernel, and nvcc's processor time for each file. Nothing was run on a GPU.",
        "compiler": "nvcc " + re.findall(r"V([\d.]+)", version)[0],
        "architecture": options.architecture,
        "flags": " ".join(FLAGS),
    }
    seconds, kernels, codes = {}, {}, {}
    with tempfile.TemporaryDirectory() as name:
        for operation in OPERATIONS:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            text, codes[operation] = compiled(ROOT, Path(name), operation, options.architecture)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds[operation] = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)
            kernels |= resources(text)
        if options.nvdisasm:
            result["instructions"] = loops(codes, options.nvdisasm)
            if options.before:
                for operation in {loop[0] for loop in LOOPS.values()}:
                    _, codes[operation] = compiled(options.before, Path(name), operation, options.architecture)
                result["instructions_before"] = loops(codes, options.nvdisasm)
    result |= {"seconds": seconds, "kernels": kernels}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
