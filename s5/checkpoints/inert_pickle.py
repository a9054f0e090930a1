"""Unpickling that imports and calls nothing a file asks for.

A pickle names the functions and classes that rebuild its objects, so unpickling can run any code. Here only
those for tensors and plain containers are resolved. Every other name becomes a :class:`Placeholder`, which
accepts whatever the pickle does with it and does nothing: training arguments, paths of another
operating system, configurations or optimizers beside the weights neither run nor prevent reading the weights.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch


class Placeholder:
    """Stand-in for an object that is not read; `origin` is the name of its class or function in the file."""

    origin = ""
    dump_patches = False  # torch asks this of the classes of pickled modules

    def __new__(cls, *args: object, **kwargs: object) -> "Placeholder":
        """Accept any arguments: the pickle meant them for another class or function."""
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __call__(self, *args: object, **kwargs: object) -> "Placeholder":
        """Stand for the result of a call as well."""
        return type(self)()

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def _ignore(self, *items: object) -> None:
        """The methods by which a pickle fills lists and sets."""

    append = extend = add = update = _ignore


def pickle_module(origins: set[str]) -> SimpleNamespace:
    """The reader as `torch.load(..., weights_only=False, pickle_module=...)` takes it.

    Args:
        origins: Receives the names of the classes and functions that were replaced by placeholders.
    """

    class Unpickler(_Unpickler):
        names = origins

    def load(file: BinaryIO, **options: object) -> object:
        return Unpickler(file).load()

    return SimpleNamespace(__name__=__name__, Unpickler=Unpickler, load=load)


# Python's implementation: the one in C reserves memory for any number of objects that a damaged file claims.
class _Unpickler(pickle._Unpickler):
    names: set[str]

    def __init__(self, file: BinaryIO, **options: object) -> None:
        # Latin-1 reads any byte string of Python 2; text of Python 3 is not affected.
        super().__init__(_Whole(file), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - classes and functions
        origin = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if origin in _REAL:
            return _REAL[origin]
        self.names.add(origin)
        return type("Placeholder", (Placeholder,), {"origin": origin})


class _Whole:
    """A file that raises an error when a read comes back short, which Python's unpickler does not check."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError("the file ends in a pickle")
        return data

    def readline(self) -> bytes:
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the file ends in a pickle")
        return line


class _Function:
    """A function that a pickle may call but not change: its instruction to set attributes is ignored."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable) -> None:
        self._call = call

    def __call__(self, *args: Any) -> object:  # noqa: ANN401 - whatever the file holds
        return self._call(*args)

    def __setstate__(self, state: object) -> None: ...


class _UntypedStorage:
    """The attributes of untyped storages that `torch.load` uses; it resolves typed ones itself."""

    __slots__ = ()
    dtype = torch.uint8

    def __setstate__(self, state: object) -> None: ...


def _rebuilt(rebuild: Callable) -> _Function:
    """A function of torch that rebuilds a tensor, without the hooks that a file may attach to it.

    Its arguments are storage, offset, size, stride, requires_grad, hooks and more. If the storage is a
    placeholder, so is the tensor.
    """

    def call(storage: object, *args: Any) -> object:  # noqa: ANN401 - sizes, flags, dtypes
        if isinstance(storage, Placeholder):
            return storage
        return (
            rebuild(storage, *args[:4], OrderedDict(), *args[5:])
            if len(args) > 4
            else rebuild(storage, *args)
        )

    return _Function(call)


def _parameter_data(data: object, *args: object) -> object:
    """A parameter is read as its tensor."""
    return data


def _plain_tensor(rebuild: Callable, kind: object, args: tuple, state: object) -> object:
    """A tensor of a subclass, or with attributes, is read as a plain one."""
    return rebuild(*args)


def _plain_dict(factory: object = None, *items: Any) -> dict:  # noqa: ANN401 - a mapping or pairs
    return dict(*items)


def _to_bytes(text: str, encoding: str) -> bytes:
    """How protocol 2 stores bytes."""
    return text.encode("latin1")


# Names of functions here are `_Function`s, classes are those that Python lets nobody change.
_REAL: dict[str, Any] = {
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.bytearray": bytearray,
    "builtins.complex": complex,
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": _Function(_plain_dict),
    "_codecs.encode": _Function(_to_bytes),
    "torch.Size": torch.Size,
    "torch.storage.UntypedStorage": _UntypedStorage(),
    "torch._utils._rebuild_tensor": _rebuilt(torch._utils._rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _rebuilt(torch._utils._rebuild_tensor_v2),
    "torch._utils._rebuild_tensor_v3": _rebuilt(torch._utils._rebuild_tensor_v3),
    "torch._utils._rebuild_parameter": _Function(_parameter_data),
    "torch._utils._rebuild_parameter_with_state": _Function(_parameter_data),
    "torch._tensor._rebuild_from_type_v2": _Function(_plain_tensor),
    **{str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
}
