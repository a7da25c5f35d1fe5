"""What a process of the virtual NPU does: import torch_npu, then run calls until the pipe closes."""

import functools
import importlib
import importlib.util
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn


def main() -> NoReturn:
    """Serve the pipe whose file descriptor is the only argument."""
    pipe = Connection(int(sys.argv[1]))
    pipe.send_bytes(_answer("ridgeline.kernels.npu.virtual.serve:prepare", None, (), {}))
    while True:
        try:
            call = pickle.loads(pipe.recv_bytes())
        except EOFError:
            os._exit(0)  # torch_npu's own farewell takes seconds
        pipe.send_bytes(_answer(*call))


def prepare() -> str:
    """Import torch_npu, with one thread a process, and give its version."""
    import torch

    from ridgeline.kernels.npu.virtual.load import load_torch_npu

    torch.set_num_threads(1)
    return load_torch_npu().__version__


def as_rank(rank: int, world_size: int, store: str, function: str, args: tuple[Any, ...], **kwargs: Any) -> Any:
    """Run a function within a gloo world that ends with it."""
    from torch import distributed
    from torch._C._distributed_c10d import FileStore

    distributed.init_process_group(
        "cpu:gloo,npu:gloo", store=FileStore(store, world_size), rank=rank, world_size=world_size
    )
    try:
        return find(function, kwargs.pop("file", None))(*args, **kwargs)
    finally:
        distributed.destroy_process_group()


def find(function: str, file: str | None) -> Callable[..., Any]:
    """The function of a name, from a file if one is given."""
    module, _, name = function.partition(":")
    return functools.reduce(getattr, name.split("."), _module(module, file))


def _module(name: str, file: str | None) -> Any:
    if file is None or name in sys.modules:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _answer(function: str, file: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps((True, find(function, file)(*args, **kwargs)))
    except BaseException:
        return pickle.dumps((False, traceback.format_exc()))


if __name__ == "__main__":
    main()
