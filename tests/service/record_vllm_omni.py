"""Record what the plugin for vLLM-Omni uses of it, from an unpacked wheel, which is read and never imported.

pip download --no-deps vllm-omni==0.30.0 && unzip vllm_omni-*.whl -d WHEEL
.venv/bin/python tests/service/record_vllm_omni.py WHEEL
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

FUNCTIONS = {
    "vllm_omni.diffusion.registry": ("register_diffusion_model",),
    "vllm_omni.diffusion.model_metadata": ("get_diffusion_model_metadata",),
    "vllm_omni.diffusion.cancellation": ("check_request_cancellation",),
    "vllm_omni.diffusion.distributed.utils": ("get_local_device",),
    "vllm_omni.plugins": ("load_omni_general_plugins",),
}
METHODS = {
    "vllm_omni.errors": {"OmniClientError": ("__init__",)},
    "vllm_omni.diffusion.request": {"OmniDiffusionRequest": ("is_dummy_run",)},
    "vllm_omni.inputs.data": {"OmniDiffusionSamplingParams": ("resolved_frame_rate",)},
}
DATACLASSES = {
    "vllm_omni.diffusion.data": ("DiffusionOutput", "OmniDiffusionConfig", "DiffusionParallelConfig"),
    "vllm_omni.diffusion.model_metadata": ("DiffusionModelMetadata",),
    "vllm_omni.diffusion.request": ("OmniDiffusionRequest",),
    "vllm_omni.diffusion.worker.request_batch": ("DiffusionRequestBatch",),
    "vllm_omni.inputs.data": ("OmniDiffusionSamplingParams",),
}
CONSTANTS = {"vllm_omni.plugins": ("OMNI_DEFAULT_PLUGINS_GROUP",)}
TARGET = Path(__file__).parents[1] / "data" / "vllm_omni.json"


def named(name: str, default: ast.expr | None) -> str:
    return name if default is None else f"{name}={ast.unparse(default)}"


def parameters(function: ast.FunctionDef) -> list[str]:
    """`name` or `name=default` of each, after a `*` those that are given by name."""
    said, defaults = function.args, function.args.defaults
    plain = [*said.posonlyargs, *said.args]
    padded = [*[None] * (len(plain) - len(defaults)), *defaults]
    rows = [named(each.arg, default) for each, default in zip(plain, padded, strict=True)]
    return rows + [
        f"*{named(each.arg, default)}" for each, default in zip(said.kwonlyargs, said.kw_defaults, strict=True)
    ]


def fields(body: ast.ClassDef) -> list[str]:
    """`name` or `name=default` of each."""
    return [named(ast.unparse(each.target), each.value) for each in body.body if isinstance(each, ast.AnnAssign)]


def record(wheel: Path) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for module in sorted({*FUNCTIONS, *METHODS, *DATACLASSES, *CONSTANTS}):
        path = wheel / Path(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8")).body
        functions = {each.name: each for each in tree if isinstance(each, ast.FunctionDef)}
        classes = {each.name: each for each in tree if isinstance(each, ast.ClassDef)}
        constants = {ast.unparse(each.targets[0]): each.value for each in tree if isinstance(each, ast.Assign)}
        said[module] = {
            "functions": {name: parameters(functions[name]) for name in FUNCTIONS.get(module, ())},
            "dataclasses": {name: fields(classes[name]) for name in DATACLASSES.get(module, ())},
            "methods": {
                name: {
                    each.name: parameters(each)
                    for each in classes[name].body
                    if isinstance(each, ast.FunctionDef) and each.name in wanted
                }
                for name, wanted in METHODS.get(module, {}).items()
            },
            "constants": {name: ast.literal_eval(constants[name]) for name in CONSTANTS.get(module, ())},
        }
    (metadata,) = wheel.glob("vllm_omni-*.dist-info")
    return {"version": metadata.name.removeprefix("vllm_omni-").removesuffix(".dist-info"), "modules": said}


if __name__ == "__main__":
    TARGET.write_text(json.dumps(record(Path(sys.argv[1])), indent=1) + "\n", encoding="utf-8")
