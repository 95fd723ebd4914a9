"""A DLPack producer in pure Python: what is known of its arrays is what the protocol says of them."""

from __future__ import annotations

import ctypes
from typing import Any

CPU, CUDA = 1, 2
READ_ONLY = 1
_CODES = {"i": 0, "u": 1, "f": 2, "V": 4, "c": 5, "b": 6}  # of NumPy's kinds; V is ml_dtypes' bfloat16


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Legacy(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, _Destructor]
_name = ctypes.pythonapi.PyCapsule_GetName
_name.restype, _name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]

#: What was exported and not given back yet, by its address.
live: dict[int, tuple[Any, ...]] = {}


@_Deleter
def _delete(address: int) -> None:
    del live[address]


@_Destructor
def _destroy(capsule: int) -> None:
    """A capsule that nobody took over frees its tensor."""
    name = _name(capsule)
    if not name.startswith(b"used_"):
        _delete(_pointer(capsule, name))


class Producer:
    """Speaks DLPack and nothing else; `reshape`, `T` and slices are there for the tests.

    `version` None: from before versions, whose ``__dlpack__`` takes a stream alone.
    """

    def __init__(self, array: Any, version: tuple[int, int] | None = (1, 0), **tensor: Any) -> None:
        self.array = array
        self.version = version
        self.tensor = tensor  # what to say instead of the truth
        self.calls = 0

    def __dlpack__(self, *, stream: Any = None, **more: Any) -> Any:
        assert stream is None
        if self.version is None and more:
            raise TypeError("__dlpack__() got an unexpected keyword argument")
        self.calls += 1
        a = self.array
        count = max(a.ndim, 1)
        shape = (ctypes.c_int64 * count)(*a.shape)
        strides = (ctypes.c_int64 * count)(*(s // a.itemsize for s in a.strides))
        tensor = _Tensor(a.ctypes.data, CPU, 0, a.ndim, _CODES[a.dtype.kind], 8 * a.itemsize, 1, shape, strides, 0)
        for field, value in self.tensor.items():
            setattr(tensor, field, value)
        if self.version is None:
            managed: Any = _Legacy(tensor, None, _delete)
        else:
            managed = _Versioned(*self.version, None, _delete, 0 if a.flags.writeable else READ_ONLY, tensor)
        address = ctypes.addressof(managed)
        live[address] = managed, a, shape, strides
        return _new(address, b"dltensor" if self.version is None else b"dltensor_versioned", _destroy)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.get("device_type", CPU), 0

    def __getitem__(self, index: Any) -> Producer:
        return Producer(self.array[index], self.version)

    def reshape(self, shape: Any) -> Producer:
        return Producer(self.array.reshape(shape), self.version)

    @property
    def T(self) -> Producer:
        return Producer(self.array.T, self.version)
