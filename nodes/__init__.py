"""The nodes. `NODE_CLASS_MAPPINGS` is a literal, because ComfyUI-Manager parses it without importing."""

from __future__ import annotations

from .condition import AddCondition, AddReference
from .dataset import CheckDataset
from .examples import LoadExample
from .host import add_routes, register_replacements
from .latent import DecodeVideo, EmptyLatent, EncodeVideo, UpscaleLatent
from .loaders import ApplyLoRA, LoadModel, LoadTextEncoder, LoadUpscaler
from .long import GenerateLongVideo
from .native import (
    ConvertModelFromNative,
    ConvertModelToNative,
    ConvertTextEncoderFromNative,
    ConvertVAEFromNative,
    ConvertVAEToNative,
)
from .old_graphs import (
    AdaptLatent,
    AddFilmGrain,
    AddNativeGuide,
    CreateNativeGuider,
    EncodePromptList,
    PassOn,
    RefineNatively,
    ReportMissing,
    SampleNatively,
    SetDecodeNoise,
)
from .plan import PlanMemory
from .replacements import REPLACEMENTS
from .sample import GenerateTwoStage, SampleVideo
from .sound import KeepSound
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
    "LTXKitCheckDataset": CheckDataset,
    "LTXKitTrainLoRA": TrainLoRA,
    "LTXKitLoadExample": LoadExample,
    "LTXKitKeepSound": KeepSound,
    "LTXKitCreateNativeGuider": CreateNativeGuider,
    "LTXKitSampleNatively": SampleNatively,
    "LTXKitRefineNatively": RefineNatively,
    "LTXKitEncodePromptList": EncodePromptList,
    "LTXKitAddNativeGuide": AddNativeGuide,
    "LTXKitAdaptLatent": AdaptLatent,
    "LTXKitAddFilmGrain": AddFilmGrain,
    "LTXKitSetDecodeNoise": SetDecodeNoise,
    "LTXKitPassOn": PassOn,
    "LTXKitReportMissing": ReportMissing,
    "LTXKitConvertModelToNative": ConvertModelToNative,
    "LTXKitConvertVAEToNative": ConvertVAEToNative,
    "LTXKitConvertModelFromNative": ConvertModelFromNative,
    "LTXKitConvertTextEncoderFromNative": ConvertTextEncoderFromNative,
    "LTXKitConvertVAEFromNative": ConvertVAEFromNative,
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
    "LTXKitCheckDataset": "Dataset (LTXKit)",
    "LTXKitTrainLoRA": "Train LoRA (LTXKit)",
    "LTXKitLoadExample": "Load Example (LTXKit)",
    "LTXKitKeepSound": "Sound (LTXKit)",
    "LTXKitCreateNativeGuider": "Guider by Level (LTXKit)",
    "LTXKitSampleNatively": "Sample Natively (LTXKit)",
    "LTXKitRefineNatively": "Refine Natively (LTXKit)",
    "LTXKitEncodePromptList": "Encode Prompt List (LTXKit)",
    "LTXKitAddNativeGuide": "Native Guide (LTXKit)",
    "LTXKitAdaptLatent": "Adapt Latent (LTXKit)",
    "LTXKitAddFilmGrain": "Film Grain (LTXKit)",
    "LTXKitSetDecodeNoise": "Decode Noise (LTXKit)",
    "LTXKitPassOn": "Pass On (LTXKit)",
    "LTXKitReportMissing": "Missing Node (LTXKit)",
    "LTXKitConvertModelToNative": "Model to ComfyUI (LTXKit)",
    "LTXKitConvertVAEToNative": "VAE to ComfyUI (LTXKit)",
    "LTXKitConvertModelFromNative": "Model from ComfyUI (LTXKit)",
    "LTXKitConvertTextEncoderFromNative": "Text Encoder from ComfyUI (LTXKit)",
    "LTXKitConvertVAEFromNative": "VAE from ComfyUI (LTXKit)",
}

add_routes()
register_replacements(REPLACEMENTS)
