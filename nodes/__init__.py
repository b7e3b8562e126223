"""The nodes. `NODE_CLASS_MAPPINGS` is a literal, because ComfyUI-Manager parses it without importing."""

from __future__ import annotations

from .condition import AddCondition, AddReference
from .examples import LoadExample
from .host import add_routes
from .latent import DecodeVideo, EmptyLatent, EncodeVideo, UpscaleLatent
from .loaders import ApplyLoRA, LoadModel, LoadTextEncoder, LoadUpscaler
from .long import GenerateLongVideo
from .plan import PlanMemory
from .sample import GenerateTwoStage, SampleVideo
from .steps import CreateGuidance, CreateSchedule, CreateStepGuidance
from .text import EncodePrompt
from .train import TrainLoRA

NODE_CLASS_MAPPINGS = {
    "LTXKitLoadModel": LoadModel,
    "LTXKitLoadTextEncoder": LoadTextEncoder,
    "LTXKitLoadUpscaler": LoadUpscaler,
    "LTXKitApplyLoRA": ApplyLoRA,
    "LTXKitPlanMemory": PlanMemory,
    "LTXKitEncodePrompt": EncodePrompt,
    "LTXKitEmptyLatent": EmptyLatent,
    "LTXKitAddCondition": AddCondition,
    "LTXKitAddReference": AddReference,
    "LTXKitCreateSchedule": CreateSchedule,
    "LTXKitCreateGuidance": CreateGuidance,
    "LTXKitCreateStepGuidance": CreateStepGuidance,
    "LTXKitSampleVideo": SampleVideo,
    "LTXKitUpscaleLatent": UpscaleLatent,
    "LTXKitEncodeVideo": EncodeVideo,
    "LTXKitDecodeVideo": DecodeVideo,
    "LTXKitGenerateTwoStage": GenerateTwoStage,
    "LTXKitGenerateLongVideo": GenerateLongVideo,
    "LTXKitTrainLoRA": TrainLoRA,
    "LTXKitLoadExample": LoadExample,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "LTXKitLoadModel": "Load Model (LTXKit)",
    "LTXKitLoadTextEncoder": "Load Text Encoder (LTXKit)",
    "LTXKitLoadUpscaler": "Load Latent Upscaler (LTXKit)",
    "LTXKitApplyLoRA": "LoRA (LTXKit)",
    "LTXKitPlanMemory": "Plan Memory (LTXKit)",
    "LTXKitEncodePrompt": "Encode Prompt (LTXKit)",
    "LTXKitEmptyLatent": "Empty Latent (LTXKit)",
    "LTXKitAddCondition": "Condition (LTXKit)",
    "LTXKitAddReference": "Reference (LTXKit)",
    "LTXKitCreateSchedule": "Schedule (LTXKit)",
    "LTXKitCreateGuidance": "Guidance (LTXKit)",
    "LTXKitCreateStepGuidance": "Guidance per Step (LTXKit)",
    "LTXKitSampleVideo": "Sample (LTXKit)",
    "LTXKitUpscaleLatent": "Upscale Latent (LTXKit)",
    "LTXKitEncodeVideo": "Encode Video (LTXKit)",
    "LTXKitDecodeVideo": "Decode Video (LTXKit)",
    "LTXKitGenerateTwoStage": "Two-Stage (LTXKit)",
    "LTXKitGenerateLongVideo": "Long Video (LTXKit)",
    "LTXKitTrainLoRA": "Train LoRA (LTXKit)",
    "LTXKitLoadExample": "Load Example (LTXKit)",
}

add_routes()
