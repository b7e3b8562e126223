"""A node pack for tests alone, copied into a test server's `custom_nodes`: tensors to files, plain conditioning."""

import functools
import json
from pathlib import Path

import comfy.ldm.lightricks.vae.causal_video_autoencoder as native_vae
import comfy.sd
import comfy.utils
import folder_paths
import numpy
import torch


class SaveTensor:
    """Writes its input, an IMAGE or the samples of a LATENT, as float32."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*",), "name": ("STRING", {"default": "x"})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    def save(self, value, name):
        tensor = value["samples"] if isinstance(value, dict) else value
        numpy.save(Path(folder_paths.get_output_directory()) / f"{name}.npy", tensor.float().cpu().numpy())
        return {}


class AsCLIPTextEncode:
    """The same embedding as from CLIP Text Encode: longer padding, not empty, and no frame rate."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "convert"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def convert(self, conditioning):
        embeddings, values = conditioning[0]
        mask = values["attention_mask"]
        more = torch.full_like(embeddings, 0.37)
        embeddings = torch.cat([torch.where(mask[..., None].bool(), embeddings, more), more], dim=1)
        mask = torch.cat([mask, torch.zeros_like(mask)], dim=1)
        return ([[embeddings, {"pooled_output": None, "attention_mask": mask}]],)


class Anything:
    """An output of type `*`, which ComfyUI accepts for every input."""

    RETURN_TYPES = ("*",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def give(self):
        return ("not a model",)


class NativeModels:
    """ComfyUI's own MODEL and VAE of a tiny file. Its VAE does not read the width from the file, so set it here."""

    RETURN_TYPES = ("MODEL", "VAE")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"checkpoint": ("STRING", {"default": ""})}}

    def load(self, checkpoint):
        path = folder_paths.get_full_path_or_raise("checkpoints", checkpoint)
        model = comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0]
        state, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
        state = {key.removeprefix("vae."): value for key, value in state.items() if key.startswith("vae.")}
        config = json.loads(metadata["config"])["vae"]
        encoder, decoder = native_vae.Encoder, native_vae.Decoder
        native_vae.Encoder = functools.partial(encoder, base_channels=config["encoder_base_channels"])
        native_vae.Decoder = functools.partial(decoder, base_channels=config["decoder_base_channels"])
        try:
            vae = comfy.sd.VAE(sd=state, metadata=metadata)
        finally:
            native_vae.Encoder, native_vae.Decoder = encoder, decoder
        return (model, vae)


class ICLoRAParameters:
    """The parameters that GetICLoRAParameters reads from a LoRA whose reference is smaller than the clip."""

    RETURN_TYPES = ("IC_LORA_PARAMETERS",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"factor": ("INT", {"default": 2})}}

    def give(self, factor):
        return ({"reference_downscale_factor": factor},)


NODE_CLASS_MAPPINGS = {
    "TestSaveTensor": SaveTensor,
    "TestAsCLIPTextEncode": AsCLIPTextEncode,
    "TestAnything": Anything,
    "TestNativeModels": NativeModels,
    "TestICLoRAParameters": ICLoRAParameters,
}
