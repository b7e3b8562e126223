"""What every node refuses in `run`: values that its widgets could not have, which arrive through a link."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from ..ltx_core.errors import ConfigError
from .widgets import FileChoices, declared_inputs, problem_with


def checked(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` of a node, which refuses a value that its widget could not have.

    A name of a file is left to the loader, whose message lists the files and their folders.
    """
    signature = inspect.signature(run)

    @functools.wraps(run)
    def with_checks(self: Any, *args: Any, **kwargs: Any) -> Any:
        values = signature.bind(self, *args, **kwargs).arguments
        declared = declared_inputs(type(self))
        for name, value in values.items():
            spec = declared.get(name)
            if spec is None or isinstance(spec.choices, FileChoices):
                continue
            problem = problem_with(name, value, spec)
            if problem:
                rest = problem.removeprefix(f"{name}: got ")
                raise ConfigError(f"got {name} {rest}; change the widget, or what is linked to it")
            if spec.type == "INT":
                values[name] = int(value)
        return run(**values)

    return with_checks
