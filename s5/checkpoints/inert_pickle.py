"""Unpickling that never imports or calls anything named in the file.

A pickle names the functions and classes that rebuild its objects, so unpickling can run arbitrary code. Here
only those for tensors and plain containers are resolved. Every other name becomes a :class:`Placeholder`,
which accepts everything the pickle does with it and does nothing. Training arguments, configurations or
optimizers in the file are therefore not executed and do not prevent reading its weights.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch


class Placeholder:
    """Stand-in for a skipped object; `origin` is the name of its class or function in the file."""

    origin = ""
    dump_patches = False  # torch reads this attribute of the classes of pickled modules

    def __new__(cls, *args: object, **kwargs: object) -> "Placeholder":
        """Accept any arguments, which are meant for another class or function."""
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __call__(self, *args: object, **kwargs: object) -> "Placeholder":
        """Return a placeholder for the result of a call."""
        return type(self)()

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def _ignore(self, *items: object) -> None:
        """Ignore items that the pickle adds to lists and sets."""

    append = extend = add = update = _ignore


def pickle_module(origins: set[str]) -> SimpleNamespace:
    """Create the module for `torch.load(..., weights_only=False, pickle_module=...)`.

    Args:
        origins: Set that collects the names of classes and functions replaced by placeholders.
    """

    class Unpickler(_Unpickler):
        names = origins

    def load(file: BinaryIO, **options: object) -> object:
        return Unpickler(file).load()

    return SimpleNamespace(__name__=__name__, Unpickler=Unpickler, load=load)


# The pure Python implementation, because the one in C allocates memory for any size stated in a damaged file.
class _Unpickler(pickle._Unpickler):
    names: set[str]

    def __init__(self, file: BinaryIO, **options: object) -> None:
        # Latin-1 decodes any byte string of Python 2; text of Python 3 is not affected.
        super().__init__(_Whole(file), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - classes and functions
        origin = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if origin in _REAL:
            return _REAL[origin]
        self.names.add(origin)
        return type("Placeholder", (Placeholder,), {"origin": origin})


class _Whole:
    """A file that raises an error on short reads, which Python's unpickler does not check."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError("the file ends within a pickle")
        return data

    def readline(self) -> bytes:
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the file ends within a pickle")
        return line


class _Function:
    """A function that a pickle may call but not modify: instructions to set attributes are ignored."""

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
    """Wrap a function of torch that rebuilds a tensor, dropping hooks that a file may attach to it.

    Its arguments are storage, offset, size, stride, requires_grad, hooks and more. If the storage is a
    placeholder, the tensor becomes one too.
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
    """Read a parameter as its tensor."""
    return data


def _plain_tensor(rebuild: Callable, kind: object, args: tuple, state: object) -> object:
    """Read a tensor of a subclass, or with attributes, as a plain tensor."""
    return rebuild(*args)


def _plain_dict(factory: object = None, *items: Any) -> dict:  # noqa: ANN401 - a mapping or pairs
    return dict(*items)


def _to_bytes(text: str, encoding: str) -> bytes:
    """Decode bytes as stored by protocol 2."""
    return text.encode("latin1")


# Functions are wrapped as `_Function`; the classes are immutable.
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
