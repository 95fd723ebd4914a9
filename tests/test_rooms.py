"""The rooms of the house (docs/design.md): who may include or import whom, and what the compiled parts show."""

from __future__ import annotations

import ast
import inspect
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import terngrad_kernels as tk
from terngrad_kernels import _core

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "python" / "terngrad_kernels"

# ---- C++

#: For each room: the rooms whose headers it may include, and the headers in angle brackets, as patterns.
INTRINSICS = r"immintrin\.h|arm_neon\.h"
STANDARD = r"[a-z_]+(\.h)?"
ROOMS = {
    "contract": (("contract",), r"math\.h|stdint\.h|string\.h"),
    "kernels": (("contract", "kernels"), rf"{INTRINSICS}|cuda\w*\.h"),
    "runtime": (("contract", "kernels", "runtime", "include"), rf"{STANDARD}|{INTRINSICS}|cuda\w*\.h"),
    "include": ((), r"stddef\.h|stdint\.h"),
    "bindings": (("runtime", "bindings"), rf"{STANDARD}|pybind11/\w+\.h"),
}

#: For each room, what its code may not say: allocate, throw, look at the environment, use intrinsics by name.
UNSAID = {
    "contract": r"\b(new|delete|malloc|throw|static_cast<std|getenv|printf|thread_local)\b|std::|_mm\d*_|__m\d+",
    "kernels": r"\b(new|delete|malloc|throw|getenv|printf|thread_local|mutex)\b|std::|PyObject|DLTensor",
    "runtime": r"\bPy[A-Z]\w+|py::|pybind11|DLTensor|DLManaged",
    "bindings": r"\b(fmaf?|sqrtf?)\(|_mm\d*_",
}

SOURCES = sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh"))


def room_of(path: Path) -> str:
    return path.relative_to(CSRC).parts[0]


def code_of(path: Path) -> str:
    """Return the source without comments and texts."""
    source = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    return re.sub(r'"(\\.|[^"\\\n])*"', '""', source)


def includes_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what kind of include it is, and of what."""
    for line in path.read_text().splitlines():
        if found := re.match(r'\s*#\s*include\s*(?:"(.*)"|<(.*)>|(\w+))', line):
            kinds = zip(("own", "system", "macro"), found.groups(), strict=True)
            yield next((kind, text) for kind, text in kinds if text)


def test_there_are_sources_in_every_room() -> None:
    rooms = {room_of(path) for path in SOURCES}
    assert rooms == set(ROOMS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(CSRC).as_posix())
def test_includes(path: Path) -> None:
    room = room_of(path)
    own, system = ROOMS[room]
    for kind, text in includes_of(path):
        if kind == "macro":
            assert room == "bindings"
            assert text == "TERNGRAD_DLPACK_HEADER"
        elif kind == "system":
            assert re.fullmatch(system, text), f"{room} may not include <{text}>"
            if text.startswith("cuda"):  # what else includes it does so by kernels_cuda.h
                assert path.name == "kernels_cuda.h"
            if re.fullmatch(INTRINSICS, text):
                # The runtime needs one for the floating-point state, the kernels name theirs in simd_<isa>.h.
                assert path.name == "float_environment.h" or re.fullmatch(r"simd_\w+\.h", path.name)
        else:
            target = (path.parent / text).resolve()
            assert target.is_file(), text
            assert room_of(target) in own, f"{room} may not include {text}"
            if room == "runtime" and room_of(target) == "kernels":
                seen = "kernels_cuda.h" if path.name == "cuda.cpp" else "kernels.h"
                assert target.name == seen, "the runtime sees the tables of kernels alone"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(CSRC).as_posix())
def test_what_the_code_does_not_say(path: Path) -> None:
    found = re.search(UNSAID.get(room_of(path), r"(?!)"), code_of(path))
    assert found is None, found
    if room_of(path) == "kernels" and not re.fullmatch(r"simd_\w+\.h", path.name):
        assert not re.search(r"\b_mm\d*_\w+|\b__m\d+\w*", code_of(path)), "vector operations have names of our own"


def test_the_contract_is_private_to_each_translation_unit() -> None:
    """Functions are TERNGRAD_CONTRACT: a plain inline one, built for AVX2, could be what the scalar path calls."""
    for path in SOURCES:
        if room_of(path) == "contract":
            for line in code_of(path).splitlines():
                if re.match(r"[A-Za-z_][\w:<>*& ]*\b\w+\([^;]*\)\s*\{", line):
                    assert line.startswith("TERNGRAD_CONTRACT "), f"{path.name}: {line}"


# ---- Python

MODULES = sorted(PACKAGE.rglob("*.py"))
FRAMEWORK_NAMES = {"torch", "jax", "jaxlib", "cupy", "tensorflow", "paddle"}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_at_import(node: ast.AST) -> Iterator[str]:
    """Yield what is imported when the module is: outside functions, with its dots."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            start = "." * child.level + (child.module or "")
            yield from (f"{start}{'' if start.endswith('.') else '.'}{alias.name}" for alias in child.names)
        elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not is_type_checking(child):
            yield from imports_at_import(child)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports(path: Path) -> None:
    """Of other packages NumPy alone; a framework only in its own adapter, which no module imports by name."""
    place = path.relative_to(PACKAGE)
    family = place.stem.partition("_")[0]
    # terngrad_kernels.torch stands on PyTorch altogether: it may name its own adapter, and nothing else imports it but
    # terngrad_kernels.torch_*.
    alone = family if len(place.parts) == 1 and family in FRAMEWORK_NAMES else None
    framework = family if place.parts[0] == "adapters" and family in FRAMEWORK_NAMES else alone
    for name in imports_at_import(ast.parse(path.read_text())):
        top = name.partition(".")[0]
        if top:
            assert top in {*sys.stdlib_module_names, "numpy", "terngrad_kernels", framework}, f"{place} imports {name}"
        elif name != f".adapters.{alone}" and not (place.stem != alone and name.startswith(f".{alone}.")):
            if place.parts[0] != "adapters":
                assert not re.match(r"\.+torch\b", name), f"{place} imports {name}"
            assert not re.search(r"adapters\.(\w+\.)*(numpy|torch|jax|cupy|tensorflow|paddle)\b", name), name
            if place.parts[0] == "adapters" and place.stem != "__init__":
                own = re.match(rf"(\.\.|\.{family}(_|\.|$))", name)
                assert own, f"{place} imports {name}: adapters do not know each other"


def test_only_adapters_name_frameworks() -> None:
    """Elsewhere a framework is imported not even inside a function."""
    for path in MODULES:
        family = path.stem.partition("_")[0]
        if path.parent.name in ("adapters", "frontends") or family in FRAMEWORK_NAMES:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert not {name.partition(".")[0] for name in names} & FRAMEWORK_NAMES, path.name


# ---- what the package shows

SIGNATURES = {
    "clip": "(x, *, clip=2.5, center=False, scales=None, out=None, stream=None)",
    "decode": "(packed, *, out=None, dtype=None, weight=1.0, accumulate=False, stream=None)",
    "decode_sum": "(messages, *, weights=None, out=None, dtype=None, stream=None)",
    "encode": "(x, *, clip=2.5, seed=0, offset=0, layer=0, packing=None, block=None, scales=None, layout=None, "
    "out=None, stream=None)",
    "from_bytes": "(buffer, *, like=None)",
    "pack": "(trits, *, packing='two_bit', out=None, stream=None)",
    "repack": "(messages, *, seed, offset, layer=0, weights=None, clip=None, scales=None, packing=None, out=None, "
    "stream=None)",
    "scales": "(x, *, clip=2.5, center=False, block=None, layout=None, out=None, stream=None)",
    "sum_trits": "(messages, *, out=None, stream=None)",
    "ternarize": "(x, *, clip=2.5, seed=0, offset=0, layer=0, scales=None, out=None, stream=None)",
    "to_bytes": "(packed)",
    "unpack": "(payload, *, shape, packing='two_bit', out=None, stream=None)",
    "validate": "(packed)",
    "build_info": "()",
    "get_cmake_dir": "()",
    "get_include": "()",
    "get_library": "()",
}
CLASSES = ("CorruptMessage", "Counts", "Layout", "Packed", "Scales")
PUBLIC = {*SIGNATURES, *CLASSES, "__version__", "get_num_threads", "set_num_threads"}


def test_public_names() -> None:
    assert set(tk.__all__) == PUBLIC
    assert len(tk.__all__) == len(PUBLIC)
    for name in PUBLIC - {"__version__"}:
        assert inspect.getdoc(getattr(tk, name)), name
    assert issubclass(tk.CorruptMessage, ValueError)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", tk.__version__)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    signature = inspect.signature(getattr(tk, name))
    plain = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    assert str(signature.replace(parameters=plain, return_annotation=signature.empty)) == SIGNATURES[name]


def test_public_objects_say_where_they_come_from() -> None:
    for name in PUBLIC - {"__version__"}:
        assert getattr(tk, name).__module__.partition(".")[0] == "terngrad_kernels", name
    assert (Path(tk.__file__).parent / "py.typed").is_file()


# ---- the compiled parts

LIBRARY = Path(_core.__file__).parent / "libterngrad_kernels.so"


def output_of(*command: str | Path) -> str:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"no {command[0]} to look with")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def symbols_of(path: Path, *options: str) -> list[tuple[str, str]]:
    """Return (kind, demangled name) of each symbol."""
    lines = output_of("nm", "-C", *options, path).splitlines()
    return [(found[1], found[2]) for line in lines if (found := re.match(r"[0-9a-f ]+ (\w) (.*)", line))]


def test_the_library_shows_its_own_interface_alone() -> None:
    """The C interface (which tests/test_c_api.py compares with its header), and what the module needs."""
    shown = symbols_of(LIBRARY, "-D", "--defined-only")
    assert any(name.startswith("terngrad::encode(") for _, name in shown)
    assert ("T", "tgk_encode@@TGK_1") in shown
    own = r"tgk_\w+@@TGK_1$|(typeinfo for |typeinfo name for |vtable for )?terngrad::.*@@TERNGRAD_INTERNAL$"
    versions = {("A", "TGK_1"), ("A", "TERNGRAD_INTERNAL")}
    assert [name for kind, name in shown if not re.match(own, name) and (kind, name) not in versions] == []
    assert [name for _, name in shown if re.search(r"terngrad::(scalar|avx2|avx512|neon)::", name)] == []


def test_the_module_shows_its_initialiser_alone() -> None:
    shown = [name for kind, name in symbols_of(Path(_core.__file__), "-D", "--defined-only") if kind == "T"]
    # What a compiler makes of the standard library's templates is shown too: that is their visibility.
    assert [name for name in shown if "std::" not in name] == ["PyInit__core"]


def test_the_library_needs_no_python() -> None:
    dynamic = output_of("readelf", "-d", LIBRARY)
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert needed
    assert not [name for name in needed if "python" in name]
    assert not [name for kind, name in symbols_of(LIBRARY, "-D", "--undefined-only") if re.match(r"_?Py[A-Z_]", name)]
    assert not re.search(r"R(UN)?PATH", dynamic)


def test_the_module_finds_the_library_beside_it() -> None:
    dynamic = output_of("readelf", "-d", Path(_core.__file__))
    assert "libterngrad_kernels.so" in re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert re.findall(r"R(?:UN)?PATH.*\[(.*)\]", dynamic) == ["$ORIGIN"]


# ---- the objects of each instruction set, built as CMakeLists.txt says

CMAKE = (ROOT / "CMakeLists.txt").read_text()
OPERATIONS = re.search(r"set\(\s*operations\s+([^)]*)\)", CMAKE)[1].split()  # type: ignore[index]
# (An instruction set that is emulated for the tests has quotes in its call.)
ISA_FLAGS = {"scalar": [], **{name: flags.split() for name, flags in re.findall(r"add_isa\((\w+)([^)\"]*)\)", CMAKE)}}
LEVELS = ("-O0", "-O2")

HERE = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
#: What runs an instruction set. Elsewhere a cross compiler builds its objects, where there is one.
ARCHITECTURES = {"scalar": HERE, "avx2": "x86_64", "avx512": "x86_64", "neon": "aarch64"}


def test_the_build_was_understood() -> None:
    assert {"scales", "encode", "decode"} <= set(OPERATIONS)
    assert set(_core.built_isas()) <= set(ISA_FLAGS)
    assert set(ISA_FLAGS) == set(ARCHITECTURES)


def compiler_of(isa: str) -> str | None:
    if ARCHITECTURES[isa] != HERE:
        return shutil.which(f"{ARCHITECTURES[isa]}-linux-gnu-g++")
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def tool_of(isa: str, name: str) -> str:
    return name if ARCHITECTURES[isa] == HERE else f"{ARCHITECTURES[isa]}-linux-gnu-{name}"


Objects = Callable[[str, str, str], Path]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """The object of an instruction set, an operation and a level of optimisation."""
    folder: Path = tmp_path_factory.mktemp("objects")
    made = {}
    commands = []
    for isa, flags in ISA_FLAGS.items():
        compiler = compiler_of(isa)
        if compiler is None:
            continue
        for operation in OPERATIONS:
            source = CSRC / "kernels" / f"{operation}_{'scalar' if isa == 'scalar' else 'simd'}.cpp"
            for level in LEVELS:
                target = made[isa, operation, level] = folder / f"{operation}_{isa}{level}.o"
                common = ["-std=c++17", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-w", level]
                command = [compiler, *common, f"-DTERNGRAD_ISA_{isa.upper()}", *flags, "-c", source, "-o", target]
                commands.append(command)
    with ThreadPoolExecutor(2) as workers:
        list(workers.map(lambda command: subprocess.run(command, check=True), commands))

    def found(isa: str, operation: str, level: str) -> Path:
        if (isa, operation, level) not in made:
            pytest.skip(f"no C++ compiler to build {isa} with")
        return made[isa, operation, level]

    return found


@pytest.mark.parametrize("isa", ISA_FLAGS)
@pytest.mark.parametrize("level", LEVELS)
def test_objects_hold_no_weak_text(isa: str, level: str, objects: Objects) -> None:
    """Of a weak function the linker keeps one copy: perhaps that of an instruction set which cannot run here."""
    libc = r"(memcpy|memset|memmove|memcmp|fmaf?|sqrtf?|_Unwind_Resume|_GLOBAL_OFFSET_TABLE_|__\w+)"
    for operation in OPERATIONS:
        for kind, name in symbols_of(objects(isa, operation, level), "--defined-only"):
            # Where exceptions are found, at -O0: a pointer, not code.
            assert kind not in "wWvVu" or name.startswith("DW.ref."), name
            assert kind != "T" or name.startswith(f"terngrad::{isa}::"), name
        lines = output_of("nm", "-C", "--undefined-only", objects(isa, operation, level)).splitlines()
        for name in (line.split(maxsplit=1)[1] for line in lines):
            assert re.fullmatch(rf"{libc}|terngrad::({isa}|scalar)::.*", name), name


#: Registers and encodings that an instruction set has, beyond which its objects may not go.
BEYOND = {
    "scalar": r"%[yz]mm\d|\tv[a-z]+\d*[a-z]* .*%xmm",
    "avx2": r"%zmm\d|%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b",
    # SVE, dot products and arithmetic in half precision came after Armv8.0.
    "neon": r"\bz\d+\.[bhsd]|\t[us]dot\b|\tf(add|mul|mla|min\w*)\s+v\d+\.8h",
}
#: What shows that it is used at all.
USED = {"scalar": "", "avx2": "%ymm", "neon": "\ttbl\t"}


@pytest.mark.parametrize("isa", BEYOND)
@pytest.mark.parametrize("level", LEVELS)
def test_objects_use_their_own_instructions(isa: str, level: str, objects: Objects) -> None:
    if isa == "scalar" and HERE != "x86_64":
        pytest.skip(f"the scalar code of x86 is looked at; this is {HERE}")
    used = ""
    for operation in OPERATIONS:
        code = output_of(tool_of(isa, "objdump"), "-d", "--no-show-raw-insn", objects(isa, operation, level))
        assert not re.search(BEYOND[isa], code), operation
        used += code
    assert USED[isa] in used


@pytest.mark.parametrize("isa", ISA_FLAGS)
def test_fused_multiply_adds_are_where_the_contract_says_fma(isa: str, objects: Objects) -> None:
    """In the sums of squares (section 2) and in accumulating (section 6); anything else was contracted by itself."""
    for operation in OPERATIONS:
        code = output_of(tool_of(isa, "objdump"), "-dr", "--no-show-raw-insn", objects(isa, operation, "-O2"))
        fused = re.search(r"\tv?fn?m(add|sub|la|ls)\w*|\bfmaf?\b", code) is not None
        assert fused == (operation in ("scales", "decode")), operation
