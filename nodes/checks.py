"""What every node refuses: values that its widgets could not have, before anything runs and in `run`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from ..ltx_core.errors import ConfigError
from .widgets import declared_inputs, problem_with


def checked(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` of a node, which refuses a value that its widget could not have.

    A name of a file is left to the loader, whose message lists the files and their folders.
    """
    signature = inspect.signature(run)

    @functools.wraps(run)
    def with_checks(self: Any, *args: Any, **kwargs: Any) -> Any:
        values = signature.bind(self, *args, **kwargs).arguments
        declared = declared_inputs(type(self))
        by_node = _names(type(self).VALIDATE_INPUTS)
        for name, value in values.items():
            spec = declared.get(name)
            if spec is None or (spec.type == "COMBO" and name in by_node):
                continue
            problem = problem_with(name, value, spec)
            if problem:
                rest = problem.removeprefix(f"{name}: got ")
                raise ConfigError(f"got {name} {rest}; change the widget, or what is linked to it")
            if spec.type == "INT":
                values[name] = int(value)
        return run(**values)

    return with_checks


def validating(cls: Any) -> Any:
    """VALIDATE_INPUTS of a node, which checks the decimals too. ComfyUI reads from its signature which inputs it wants,
    and leaves those to it."""
    own = cls.VALIDATE_INPUTS.__func__
    asked = _names(own)
    decimals = [
        name
        for name, parameter in inspect.signature(cls.__dict__["run"]).parameters.items()
        if parameter.annotation == "float" and name not in asked
    ]

    def VALIDATE_INPUTS(cls: Any, *given: Any, **named: Any) -> bool | str:
        values = {**dict(zip((*asked, *decimals), given, strict=False)), **named}
        declared = declared_inputs(cls)
        known = (name for name in decimals if values.get(name) is not None)  # ComfyUI passes None for a link
        problems = (problem_with(name, values[name], declared[name]) for name in known)
        problem = next(filter(None, problems), None)
        return problem or own(cls, **{name: value for name, value in values.items() if name in asked})

    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, keyword, default=None) for name in (*asked, *decimals)]
    VALIDATE_INPUTS.__signature__ = inspect.Signature([inspect.Parameter("cls", keyword), *parameters])
    return classmethod(VALIDATE_INPUTS)


def _names(function: Callable[..., Any]) -> list[str]:
    """The parameters of a method but the first."""
    return inspect.getfullargspec(function).args[1:]
