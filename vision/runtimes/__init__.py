"""What runs a net. One module for each runtime, imported only when it is asked for.

Such a module has `load(path, labels, net, size, device, **options) -> Detector`.
"""

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Union

from vision.detector import Detector
from vision.errors import UserError


class Runtime(NamedTuple):
    """One line of the table.

    Attributes:
        module: below `vision.runtimes`.
        suffixes: of the files it reads.
        needs: the package it imports.
        install: how to get that.
    """

    module: str
    suffixes: Tuple[str, ...]
    needs: str
    install: str


RUNTIMES: Dict[str, Runtime] = {
    "pytorch": Runtime("pytorch", (".pth", ".pt"), "torch", "pip install torch"),
}
"""Where several read a suffix, the first one that is installed is taken."""


def open_detector(
    path: Union[str, Path],
    runtime: str = "auto",
    labels: Optional[Union[str, Path]] = None,
    net: Optional[str] = None,
    size: Optional[Tuple[int, int]] = None,
    device: Optional[str] = None,
    **options: Any,
) -> Detector:
    """Open a net that was trained or exported.

    Args:
        path: the file.
        runtime: a name of RUNTIMES, or "auto": by the file's suffix.
        labels: a label file, for a file that does not know its classes.
        net: the net's name, for a file that does not know it.
        size: (height, width), for a file that does not know it.
        device: "cpu", "cuda", ...; None is the best there is.
        options: of the runtime's `load`.

    Raises UserError when the file is missing, no runtime reads it or the runtime is not installed.
    """
    path = Path(path)
    chosen = RUNTIMES[choose_runtime(path, runtime)]
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, not a model' if path.is_dir() else 'no such file'}")
    try:
        module = importlib.import_module(f"vision.runtimes.{chosen.module}")
        importlib.import_module(chosen.needs)
    except ImportError as error:
        raise UserError(f"{path}: cannot import {chosen.needs} ({error}); try: {chosen.install}") from error
    _check_options(chosen.module, module.load, options)
    return module.load(path, labels=labels, net=net, size=size, device=device, **options)


def _check_options(runtime: str, load: Callable[..., Detector], options: Dict[str, Any]) -> None:
    known = inspect.signature(load).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known):
        return  # the runtime itself passes them on, to what knows them
    names = [parameter.name for parameter in known]
    for option in options:
        if option not in names:
            raise UserError(f"runtime {runtime} has no option {option!r}")


def choose_runtime(path: Path, runtime: str = "auto") -> str:
    """The name in RUNTIMES of what is to run this file. Raises UserError when there is none."""
    if runtime != "auto":
        if runtime not in RUNTIMES:
            raise UserError(f"unknown runtime {runtime!r}; known: auto, {', '.join(RUNTIMES)}")
        return runtime
    readers = [name for name, line in RUNTIMES.items() if path.suffix.lower() in line.suffixes]
    if not readers:
        raise UserError(f"{path}: nothing here runs a {path.suffix or 'nameless'} file. Known: {_known()}")
    installed = [name for name in readers if _is_installed(RUNTIMES[name].needs)]
    # With none installed the first is tried, and its message says how to get it.
    return (installed or readers)[0]


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _known() -> str:
    lines: List[str] = [f"{' '.join(line.suffixes)} ({name})" for name, line in RUNTIMES.items()]
    return ", ".join(lines)
