"""Stand-ins for vLLM-Omni's modules, made of the signatures that `record_vllm_omni.py` has read in its wheel."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RECORD = json.loads((Path(__file__).parents[1] / "data" / "vllm_omni.json").read_text(encoding="utf-8"))


class NotLiteral:
    """A default that is more than a literal."""


def default_of(source: str) -> Any:
    for factory in (dict, list):
        if f"default_factory={factory.__name__}" in source.replace(" ", ""):
            return dataclasses.field(default_factory=factory)
    try:
        return ast.literal_eval(source)
    except ValueError:
        return torch.bfloat16 if source == "torch.bfloat16" else dataclasses.field(default_factory=NotLiteral)


def signature_of(rows: list[str]) -> inspect.Signature:
    parameters: list[inspect.Parameter] = []
    for row in rows:
        name, _, default = row.lstrip("*").partition("=")
        kind = inspect.Parameter.KEYWORD_ONLY if row.startswith("*") else inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(
            inspect.Parameter(name, kind, default=ast.literal_eval(default) if default else inspect.Parameter.empty)
        )
    return inspect.Signature(parameters)


def dataclass_of(module: str, name: str, **members: Any) -> Any:
    """A dataclass with the recorded fields. members: what else it has."""
    made: list[Any] = []
    for row in RECORD["modules"][module]["dataclasses"][name]:
        field, equals, default = row.partition("=")
        made.append((field, Any, default_of(default)) if equals else (field, Any))
    return dataclasses.make_dataclass(name, made, namespace=members)


def function_of(module: str, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes what the recorded one takes, and hands it all to `act` by name."""
    signature = signature_of(RECORD["modules"][module]["functions"][name])

    def call(*given: Any, **named: Any) -> Any:
        bound = signature.bind(*given, **named)
        bound.apply_defaults()
        return act(**bound.arguments)

    return call


class AbortedError(RuntimeError):
    """As DiffusionRequestAbortedError."""


class Omni:
    """vLLM-Omni, as far as the plugin knows it. modules: by their names, for `sys.modules`."""

    def __init__(self) -> None:
        self.registered: dict[str, dict[str, Any]] = {}
        self.built_in = {"LTX2Pipeline": {}}
        self.cancelled = False
        self.modules: dict[str, types.ModuleType] = {}
        data, request = "vllm_omni.diffusion.data", "vllm_omni.diffusion.request"
        self.sampling = dataclass_of(
            "vllm_omni.inputs.data", "OmniDiffusionSamplingParams", resolved_frame_rate=property(self._rate)
        )
        self.request_class = dataclass_of(
            request, "OmniDiffusionRequest", is_dummy_run=lambda this: this.request_id == "dummy_req_id"
        )
        self.batch = dataclass_of("vllm_omni.diffusion.worker.request_batch", "DiffusionRequestBatch")
        self.config_class = dataclass_of(data, "OmniDiffusionConfig")
        self.parallel_class = dataclass_of(data, "DiffusionParallelConfig")
        metadata = "vllm_omni.diffusion.model_metadata"
        self._module(metadata, DiffusionModelMetadata=dataclass_of(metadata, "DiffusionModelMetadata"))
        self.metadata: dict[str, Any] = {}
        self.modules[metadata].__dict__["_DIFFUSION_MODEL_METADATA"] = self.metadata
        registry, cancellation = "vllm_omni.diffusion.registry", "vllm_omni.diffusion.cancellation"
        known = types.SimpleNamespace(get_supported_archs=lambda: {**self.built_in, **self.registered}.keys())
        register = function_of(registry, "register_diffusion_model", self._register)
        self._module(registry, DiffusionModelRegistry=known, register_diffusion_model=register)
        check = function_of(cancellation, "check_request_cancellation", self._check)
        self._module(cancellation, check_request_cancellation=check)
        local = function_of("vllm_omni.diffusion.distributed.utils", "get_local_device", lambda: torch.device("cpu"))
        self._module("vllm_omni.diffusion.distributed.utils", get_local_device=local)
        self._module(data, DiffusionOutput=dataclass_of(data, "DiffusionOutput"))
        self._module("vllm_omni.errors", OmniClientError=self._client_error())

    def _module(self, name: str, **members: Any) -> None:
        """A module, and the packages around it."""
        for end in range(1, name.count(".") + 1):
            package = ".".join(name.split(".")[:end])
            self.modules.setdefault(package, types.ModuleType(package))
        self.modules[name] = types.ModuleType(name)
        self.modules[name].__dict__.update(members)

    def _client_error(self) -> type[ValueError]:
        rows = RECORD["modules"]["vllm_omni.errors"]["methods"]["OmniClientError"]["__init__"]
        names = [row.lstrip("*").partition("=")[0] for row in rows]
        assert names == ["self", "message", "status_code", "error_type"]

        class OmniClientError(ValueError):
            def __init__(self, message: str, *, status_code: int = 400, error_type: str = "BadRequestError") -> None:
                super().__init__(message)
                self.status_code, self.error_type = status_code, error_type

        return OmniClientError

    @staticmethod
    def _rate(asked: Any) -> float | None:
        return next((float(rate) for rate in (asked.frame_rate, asked.fps) if rate is not None), None)

    def _register(self, model_arch: str, **said: Any) -> None:
        self.registered[model_arch] = said

    def _check(self, synchronize: bool) -> None:
        if self.cancelled:
            raise AbortedError

    # --- what its server makes ----------------------------------------------------------------------------------------

    def config(self, model: Path, **options: Any) -> Any:
        config = self.config_class(model=str(model), parallel_config=self.parallel_class())
        config.diffusion_offload_config = options.pop("diffusion_offload_config", None)
        for name, value in options.items():
            holder = config if hasattr(config, name) else config.parallel_config
            assert hasattr(holder, name), name
            setattr(holder, name, value)
        return config

    def request(self, prompt: Any = "a 7 moving up", *, name: str = "1", **asked: Any) -> Any:
        """A request after `OmniDiffusionRequest.__post_init__`, which fills in what nobody has said."""
        sampling = self.sampling(**asked)
        if sampling.generator is None and sampling.seed is None:
            sampling.seed = 5
        sampling.guidance_scale_provided = sampling.guidance_scale is not None
        sampling.guidance_scale_2_provided = sampling.guidance_scale_2 is not None
        sampling.guidance_scale = 1.0 if sampling.guidance_scale is None else sampling.guidance_scale
        sampling.guidance_scale_2 = sampling.guidance_scale_2 or sampling.guidance_scale
        return self.request_class(prompt=prompt, sampling_params=sampling, request_id=name)

    def batch_of(self, *requests: Any) -> Any:
        return self.batch(requests=list(requests))
