"""All of LTX-Video in one object: files in, clips out.

    ltx = ltxkit.load("ltxv-2b-0.9.8-distilled.safetensors", "t5xxl_fp16.safetensors")
    ltx.generate("A lighthouse in a storm", width=768, height=512, frames=121, fps=24, seed=1).save("lighthouse.mp4")

Sampling follows the recipe of the recognised checkpoint (`releases`), with what `presets.Recipe` changes in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, overload

import torch
from torch import Tensor

from ..budget.tiling import Tiling
from ..cache import cache_folder
from ..errors import WrongNameError
from ..host import Host
from ..models.sharing import Sharing
from ..models.text_encoder import TextEncoder
from ..models.transformer import LTXTransformer
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import VideoVAE
from ..placing.balanced import BalancedPlacement
from ..placing.compiling import compile_where_placed
from ..placing.devices import clear_of_memory, every_device
from ..placing.lora import LORA_MODES, LoRAMode, check_mode
from ..placing.placement import DevicePlacement, host_on
from ..placing.readahead import ReadAhead
from ..placing.together import check_alike, shared, sharing_of
from ..progress import Notes, doubt, log_note, silent
from ..releases import Recipe
from ..sampling.noise import SeededNoise
from ..shapes import PixelShape
from ..values import check_choice, check_crf, check_kind
from ..weights.build import CheckpointInfo, OpenFiles, mixed_generations, open_files
from ..weights.bundled import BUNDLED_SIZE, find_model, is_bundled
from ..weights.lora import WeightedLoRA, match_lora
from ..weights.text_encoder import text_encoder_from
from . import presets, record
from .bar import Shown, callback, progress_shown, with_bar
from .cancel import Runs
from .chosen import check_choices, device_of_one, placement_of
from .clip import Clip, ClipDecoder, VAEFile, as_rate
from .condition import Conditions
from .division import describe_division
from .dry_run import Outline, check_fits
from .hints import GENERATE, LOAD, MODELS, hinted, wrong_name
from .long_clip import LongRequest, check_one_pass, long_latent
from .passes import Pass, tokens_of_passes
from .places import find_file, find_models, no_text_encoder
from .preflight import check_widths
from .prompt_cache import PromptCache, prompts_of
from .recipe import check_recipe, recipe_for, versions_with
from .request import as_conditions, as_text, asked_clips, asked_loras, asked_size, draws_seeds, merged, recipe_of
from .sample import EncodedPrompt, LatentClip, Prompts, sample
from .settings import NO_OVERRIDES, Decoding, Overrides, Settings
from .start import Start, started
from .text import encode_prompts
from .two_stage import Upscaling, check_upscalable, first_pass_size, generate_two_stage

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Unpack

    from .request import Given, Prompt, Request, Starting, Text, Texts

DEFAULT_CRF = 29  # Lightricks/LTX-Video, inference.py

Path_ = Path | str


@dataclass(eq=False, repr=False)
class Components:
    """The models of one checkpoint, loaded and checked to belong together; what `ltxkit.load` returns.

    Args:
        transformer, vae, text_encoder, upscaler: the models; upscaler: None for one pass. info: what is known about the
            file of the transformer.
        recipe: the settings that the checkpoint was made for. sources: the name of each part's file.
        placement: where they run. tiling: how clips are decoded; None: chosen to fit the memory.
        loras: applied to the transformer while it samples. The one value that can be set: a list of `ltxkit.LoRA` or
            of paths; [] takes them all off.
        vae_file: where the VAE was read. settings: the release whose recipe was asked for.
        origin: files and choices of loading, for the metadata of clips.
        prompts: those that are encoded already; None: each is encoded every time.
        lora_mode: how LoRAs are applied, see `load`.
        copied: weights are in memory, not mapped from their files.
        sharing: the processes that make each clip together; None: this one alone.
    """

    transformer: LTXTransformer
    vae: VideoVAE
    text_encoder: TextEncoder
    upscaler: LatentUpsampler | None
    info: CheckpointInfo
    recipe: Recipe
    placement: DevicePlacement | BalancedPlacement
    sources: Mapping[str, str]
    tiling: Tiling | None = None
    loras: tuple[WeightedLoRA, ...] = ()
    vae_file: VAEFile | None = None
    settings: str | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    prompts: PromptCache | None = None
    runs: Runs = field(default_factory=Runs)
    lora_mode: LoRAMode = "auto"
    copied: bool = False
    sharing: Sharing | None = None

    @classmethod
    @hinted(LOAD, "ltxkit.load")
    @with_bar
    def load(
        cls,
        model: Path_,
        text_encoder: Path_ | None = None,
        *,
        vae: Path_ | None = None,
        upscaler: Path_ | None = None,
        tokenizer: Path_ | None = None,
        version: str | None = None,
        dtype: torch.dtype | None = None,
        quantization: str | None = None,
        text_quantization: str | None = None,
        fp8_matmul: bool = False,
        loras: Sequence[WeightedLoRA | Path_] | WeightedLoRA | Path_ = (),
        lora_mode: LoRAMode = "auto",
        settings: str | None = None,
        device: str | torch.device | Sequence[str | torch.device] | None = None,
        resident_blocks: int | None = None,
        tile: int | None = None,
        kernels: str | None = None,
        compile: bool = False,
        cuda_graphs: bool = False,
        keep: bool | None = None,
        cache: bool | None = None,
        copy: bool = False,
        group: ProcessGroup | None = None,
        opened: OpenFiles | None = None,
        progress: Shown = None,
        notes: Notes = log_note,
    ) -> Components:
        """Load from files or folders, or by its name, "ltxkit-digits", the model that comes with the pack.

        model: transformer and VAE, or the transformer alone with `vae`; or a folder that holds a model and T5, or the
            name of a release that `ltxkit fetch` brought, such as "13b-0.9.8-dev", both without `text_encoder`.
        upscaler: makes two passes.
        tokenizer: `spiece.model` or `tokenizer.json`, if it is in none of the usual places.
        version: the released version, such as "13b-0.9.8-dev", if the file does not state it.
        dtype: of all weights; None: the stored dtypes. device: where they run; None: the best available;
            several, or "balanced" for all there are: blocks of the transformer and the text encoder are divided among
            them, the rest is on the first.
        quantization, text_quantization, fp8_matmul: of transformer and text encoder, see `load_transformer`.
        loras: for the transformer. lora_mode: "merged": into copies of its weights, where they are plain numbers;
            "beside": added to the products of its Linears, as always where weights are quantized. "auto": merged, on a
            CPU where main memory has room for the copies. A clip's settings say which of the two it was.
        settings: the released version whose recipe is used. None: the model's, or for a dev
            model with the distilled LoRA that of the distilled model.
        resident_blocks: how many blocks of a transformer or text encoder stay on the device; the others are streamed.
            tile: side of the decoder's tiles in latent cells. None: as `dry_run.plan` chooses.
        kernels: by which the device computes, as `kernels.choice.parse_kernels`. None: the best that was measured, or
            what LTXKIT_KERNELS says.
        compile: the blocks of the transformer are compiled, where nothing of it is streamed: the first step takes a
            minute or so, the others less time; see `placing.compiling`.
        cuda_graphs: compiled blocks are recorded as CUDA graphs too, which pays for small clips; see `placing.graphs`.
        keep: models stay on the device between stages and clips. None: those that fit beside what runs. False: none.
            True: all that are not streamed, and what no longer fits beside them is streamed. See `release`.
        cache: encoded prompts are kept, in memory and in the user's cache folder, so that the text encoder is read only
            for a new one; bit-equal to encoding them. None: unless the environment has LTXKIT_CACHE=off.
        copy: weights are read into memory, all of them now, and what happens to the files afterwards does not matter.
            False: files are mapped, and must stay as they are while their models are in use.
        group: processes of torch.distributed that make each clip together, such as `dist.group.WORLD` once
            `init_process_group` was called; each calls `generate` alike, computes a share of every step, and gets the
            whole clip, which any of them decodes alone, or all of them together (`Clip.together`). `device` is then
            this process's: None: the card of LOCAL_RANK, or else torch's current one.
        opened: the same files, by `open_files`, if they are open already.
        progress: receives every step; None: a bar where somebody sees it; False: nothing. notes: receives sentences
            for the user; by default they are logged, and warnings where a clip may be worthless.

        The text encoder's file is checked now and read when a prompt needs it.

        Raises:
            CheckpointError: a file is damaged, incomplete, or of another kind (which the message names), or a LoRA is
                for another model.
            ConfigError: `version` is required, the parts do not belong together, or an argument is not valid.
        """
        progress = callback(progress)
        sharing = sharing_of(group)
        at = every_device() if device == "balanced" else device
        if sharing is not None:
            at = device_of_one(at, compile=compile, cuda_graphs=cuda_graphs)
        placement = placement_of(at, resident_blocks, keep, kernels, notes, compile=compile, cuda_graphs=cuda_graphs)
        tiling = Tiling.square(tile)
        check_choices(dtype, (quantization, text_quantization), version, settings)
        if cache is not None:
            check_kind("cache", cache, bool)
        check_choice("lora_mode", lora_mode, LORA_MODES)
        check_kind("copy", copy, bool)
        loras = asked_loras(loras, copy=copy)
        model, text_encoder = find_models(model, text_encoder)
        if text_encoder is None and opened is None:
            raise no_text_encoder()
        upscaler = find_file(upscaler, "latent_upscale_models") if upscaler else None
        vae = find_model(vae, "checkpoints") if vae else None
        files = opened or open_files(model, text_encoder, vae=vae, upscaler=upscaler, version=version, copy=copy)
        if sharing is not None:
            sharing.check(files.without_data()[0].transformer()[0].config.num_attention_heads)
        transformer, info = files.model.transformer(
            dtype=dtype, quantization=quantization, fp8_matmul=fp8_matmul, progress=progress
        )
        if cuda_graphs:
            compile_where_placed(transformer, cuda_graphs=True)
        loaded_vae = files.vae.vae(dtype=dtype, progress=progress)
        loaded_upscaler = files.upscaler.upscaler(dtype=dtype, progress=progress) if files.upscaler else None
        if files.text_encoder is None:
            raise no_text_encoder()
        encoder = text_encoder_from(
            files.text_encoder,
            dtype=dtype,
            quantization=text_quantization,
            tokenizer=tokenizer,
            when_needed=not files.text_encoder.copied,
        )
        check_widths(transformer, loaded_vae, encoder.config, loaded_upscaler)
        matched = [
            f"{item.lora.path.name}: {match_lora(item.lora, transformer, allow_partial=item.allow_partial)}."
            for item in loras
        ]
        check_mode(lora_mode, loras, transformer)
        chosen, option = (version, "version") if settings is None else (settings, "settings")
        if chosen is not None:
            check_recipe(chosen, transformer.config.num_layers, option)
        versions, distilled = versions_with(info.versions, loras) if settings is None else ((settings,), "")
        recipe, origin = recipe_for(versions)
        if is_bundled(model):
            frames, *sides = BUNDLED_SIZE
            height, width = (side if upscaler is None else 2 * side for side in sides)
            recipe = replace(recipe, num_frames=frames, height=height, width=width)
        certain = len(versions) == 1 or is_bundled(model)
        for note in filter(None, (*matched, distilled, origin if certain else "")):
            notes(note)
        mixed = mixed_generations(files.model, files.vae)
        for note in filter(None, (*info.notes, *encoder.notes, mixed, "" if certain else origin)):
            doubt(note, notes)
        prompts = None
        if cache or (cache is None and cache_folder() is not None):
            prompts = prompts_of(
                files.text_encoder,
                encoder.config,
                dtype=dtype,
                quantization=text_quantization,
                device=placement.device,
                kernels=placement.kernels_of(encoder.outline),
            )
        named = {"model": model, "vae": vae, "text_encoder": text_encoder, "upscaler": upscaler}
        return cls(
            transformer,
            loaded_vae,
            encoder,
            loaded_upscaler,
            info,
            recipe,
            placement,
            {name: Path(path).name for name, path in named.items() if path},
            tiling,
            tuple(loras),
            VAEFile(files.vae.checkpoint.path, files.vae.version, dtype),
            settings,
            {
                "files": record.files_of({**named, "tokenizer": tokenizer}),
                "load": {
                    "version": version,
                    "dtype": None if dtype is None else str(dtype),
                    "quantization": quantization,
                    "text_quantization": text_quantization,
                    "fp8_matmul": fp8_matmul,
                    "settings": settings,
                },
            },
            prompts,
            lora_mode=lora_mode,
            copied=copy,
            sharing=sharing,
        )

    def __repr__(self) -> str:
        on = getattr(self.placement, "device", None)
        names = " + ".join(dict.fromkeys(self.sources.values()))
        version = self.info.version if isinstance(self.info.version, str) else " or ".join(self.info.version)
        kind = f"{str(self.transformer.dtype).removeprefix('torch.')}{f' on {on}' if on is not None else ''}"
        loras = f", LoRAs: {', '.join(item.lora.path.name for item in self.loras)}" if self.loras else ""
        return f"<LTXKit {version or 'model'}: {names}, {kind}{loras}>"

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dict__:  # while it is made
            object.__setattr__(self, name, value)
        elif name == "loras":
            loras = asked_loras(value, copy=self.copied)
            for item in loras:
                match_lora(item.lora, self.transformer, allow_partial=item.allow_partial)
            check_mode(self.lora_mode, loras, self.transformer)
            object.__setattr__(self, "recipe", self._recipe_with(loras))
            object.__setattr__(self, "loras", tuple(loras))
        else:
            raise WrongNameError(
                f"got a new value for {name}; expected loras, which alone can be set; load the models again, or use "
                "dataclasses.replace"
            )

    def __getattr__(self, name: str) -> Any:
        if name in MODELS:
            raise wrong_name("attribute", name, "the models", MODELS, ())
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise WrongNameError("got a call of the models; expected their method; write ltx.generate(prompt)")

    def release(self) -> None:
        """Take every model off the device; the next clip puts there what it needs."""
        self.placement.release_all()

    def cancel(self) -> None:
        """Stop what these models do now, from any thread: `generate` and `save` raise CancelledError at the next step.

        Calls that begin afterwards are not concerned.
        """
        self.runs.cancel()

    def encode(self, prompt: str, *, notes: Notes = log_note) -> EncodedPrompt:
        """A prompt as T5 encodes it, which `generate` takes in place of text, any number of times."""
        host = host_on(self.placement, silent, notes)
        (encoded,) = encode_prompts(self.text_encoder, [prompt], host=host, kept=self.prompts)
        return encoded

    def _recipe_with(self, loras: Sequence[WeightedLoRA]) -> Recipe:
        """The recipe of the checkpoint with these LoRAs in place of the present ones."""
        if self.settings is not None:
            return self.recipe
        before, now = (versions_with(self.info.versions, each)[0] for each in (self.loras, loras))
        return self.recipe if before == now else recipe_for(now)[0]

    @overload
    def generate(self, prompt: Text, *, seed: int | None = 0, **request: Unpack[Request]) -> Clip: ...

    @overload
    def generate(
        self, prompt: Texts, *, seed: int | Sequence[int | None] | None = 0, **request: Unpack[Request]
    ) -> list[Clip]: ...

    @overload
    def generate(self, prompt: Text, *, seed: Sequence[int | None], **request: Unpack[Request]) -> list[Clip]: ...

    @hinted(GENERATE, "ltx.generate", also=presets.Knobs.__annotations__)
    @clear_of_memory("this clip")
    def generate(
        self,
        prompt: Text | Texts,
        *,
        width: int | None = None,
        height: int | None = None,
        frames: int | None = None,
        fps: Fraction | float | None = None,
        negative_prompt: Text | Texts | None = None,
        seed: int | Sequence[int | None] | None = 0,
        conditions: Given = (),
        crf: int = DEFAULT_CRF,
        start: Starting = None,
        mask: Any = None,
        recipe: presets.Recipe | str | None = None,
        settings: Overrides = NO_OVERRIDES,
        force: bool = False,
        progress: Shown = None,
        notes: Notes = log_note,
        **knobs: Any,
    ) -> Clip | list[Clip]:
        """Make a clip, in two passes if there is an upscaler. It is decoded only when its frames are read.

        Several prompts, several seeds, or as many of both give a list of clips, each as it would be alone.

        Args:
            prompt: text, several texts, or what `encode` returns.
            width, height, frames: of the result, any; a size that the VAE cannot have is padded, and cropped again.
                None: those of `start`, or else of the recipe.
            fps, negative_prompt: None: the recipe's.
            seed: one seed is one clip; None draws one, which `clip.settings` has. A list makes a clip for each.
            conditions: what the clip shows, and references that it follows: a `Condition` or `Reference`, or what one
                is made of, or a list of these. crf: H.264 compression of those without a value of their own, see
                `media.compress`; 0: none.
            start: a clip to start from (video to video): a `Clip`, a latent (1 c f h w), or anything that is frames.
                Set `denoise_strength` below 1, or a `mask`.
            mask: what of `start` is made anew: white; black stays. A picture, or one for each frame.
            recipe: a `Recipe`, or the name of the release whose recipe is used. The fields of `Recipe` can be given
                directly, such as steps=20 or second={"guidance_scale": 1}; these win.
            settings: overrides as the core has them, below those of `recipe`.
            force: try a clip that takes more memory than there is.
            progress: receives every step; None: a bar where somebody sees it; False: nothing.
            notes: receives sentences for the user; by default they are logged, and warnings where the clip may be
                worthless.

        Raises:
            ShapeError, ConfigError: a size or setting that cannot work. UnsupportedError: the clip does not fit.
            CancelledError: `cancel` was called.
        """
        clips = asked_clips(prompt, negative_prompt, seed)
        if self.sharing is not None and draws_seeds(seed):
            clips = clips.with_seeds(self.sharing.values([each.seed for each in clips])[0])
        check_crf(crf)
        prepared = [item.prepared(crf) for item in as_conditions(conditions)]
        check_kind("settings", settings, Overrides)
        mine = recipe_of(recipe, knobs)
        all_settings = Settings(mine.official or self.recipe, merged(mine.overrides(), settings))
        beginning = Start.of(start, mask)
        asked = asked_size((frames, height, width), beginning, all_settings.recipe)
        for item in prepared:
            item.check_place(asked.frames, self.vae.config.scale_factors.frames)
        rate = as_rate(all_settings.recipe.frame_rate if fps is None else fps)
        size = self._size(asked, all_settings, notes)
        passes = self._passes(all_settings, size)
        beginning.check(passes[0], asked, all_settings.overrides.first.denoise_strength)
        for remark in (remark for run_pass in passes for remark in run_pass.remarks(all_settings.recipe)):
            doubt(remark, notes)
        if isinstance(self.placement, DevicePlacement) and not force:
            check_fits(self._outline(self.placement, self.upscaler), asked, self.placement.device, self._processes)
        negatives = [self._negative(passes, each.negative, all_settings.recipe, notes) for each in clips]
        self._check_alike(
            passes,
            size=tuple(asked),
            prompt=[as_text(each.prompt) for each in clips],
            negative_prompt=[as_text(each) for each in negatives],
            seed=[each.seed for each in clips],
        )
        self._say_division(passes, notes)
        decoding = all_settings.decoding("one" if self.upscaler is None else "second")

        with progress_shown(progress) as report, self.runs.watched(report) as watched:
            decided: dict[str, str] = {}
            host = host_on(self.placement, watched, notes, decided.__setitem__)
            canvas = size if self.upscaler is None else PixelShape(size.frames, asked.height, asked.width)
            remarks: list[str] = []
            # The transformer comes from the disk, and pictures are resized, while the text is encoded.
            with ReadAhead([self.transformer, self.vae]), ThreadPoolExecutor(1, "ltxkit conditions") as beside:
                resized = beside.submit(lambda: [item.on_canvas(asked, canvas, remarks.append) for item in prepared])
                encoded = self._encoded([each.prompt for each in clips], negatives, host)
                placed = Conditions(resized.result(), self.vae)
            for remark in remarks:
                notes(remark)
            made: list[Clip] = []
            first = started(beginning, self.vae, asked, size, host)
            said = {
                **self._record(passes, decoding),
                "width": asked.width,
                "height": asked.height,
                "frames": asked.frames,
                "fps": str(rate),
                "conditions": [item.describe() for item in prepared],
                "crf": crf,
                **beginning.describe(),
                **({} if mine.release is None else {"release": mine.release}),
                "settings": all_settings.overrides.to_json(),
            }
            for each, negative, prompts in zip(clips, negatives, encoded, strict=True):
                clip = LatentClip.empty(self.vae, size, float(rate)) if first is None else first(float(rate))
                latent = self._sampled(passes, clip, prompts, SeededNoise(each.seed), host, placed, all_settings)
                texts = {"prompt": as_text(each.prompt), "negative_prompt": as_text(negative), "seed": each.seed}
                made.append(self._clip(latent, (asked, rate), {**said, **decided, **texts}, each.seed, all_settings))
        return made if clips.several else made[0]

    @clear_of_memory("this clip")
    def generate_long(
        self, prompts: Sequence[str], request: LongRequest, *, progress: Shown = None, notes: Notes = log_note
    ) -> Clip:
        """Make a clip of any length in windows, each with its own prompt, see `long_video`.

        prompts: one for all windows, or one for each. progress, notes: as `generate`.

        Raises:
            ConfigError: lengths or a number of prompts that cannot be. UnsupportedError: with an upscaler, or too
                little memory for a window.
        """
        check_one_pass(self.upscaler is not None)
        scale, asked = self.vae.config.scale_factors, request.asked
        windows, window = request.windows(len(prompts), scale), request.window_size(scale)
        settings = Settings(self.recipe, request.settings)
        (run_pass,) = self._passes(settings, window)
        for remark in run_pass.remarks(self.recipe):
            doubt(remark, notes)
        if isinstance(self.placement, DevicePlacement) and not request.force:
            check_fits(self._outline(self.placement, None), window, self.placement.device, self._processes)
        notes(f"{len(windows)} windows of {window.frames} frames, {len(prompts)} prompt{'s' * (len(prompts) > 1)}.")
        unwanted = self._negative([run_pass], request.negative_prompt, self.recipe, notes)
        self._check_alike([run_pass], size=tuple(asked), prompt=list(prompts), seed=request.seed)
        self._say_division([run_pass], notes)
        with progress_shown(progress) as report, self.runs.watched(report) as watched:
            decided: dict[str, str] = {}
            host = host_on(self.placement, watched, notes, decided.__setitem__)
            texts = self._encoded(prompts, [unwanted] * len(prompts), host)
            encoded = [text.by_name["positive"][0] for text in texts]
            negative = None if unwanted is None else texts[0].by_name["negative"][0]
            decoding = settings.decoding("one")
            with shared(self.transformer, self.sharing):
                latent = long_latent(request, run_pass, self.vae, (encoded, negative), decoding, host=host)
        said = {
            **self._record([run_pass], decoding),
            **decided,
            "width": asked.width,
            "height": asked.height,
            "frames": asked.frames,
            "fps": str(request.fps),
            "conditions": [item.describe() for item in request.conditions],
            "crf": request.crf,
            "settings": request.settings.to_json(),
            "prompt": "\n".join(prompts),
            "negative_prompt": unwanted,
            "seed": request.seed,
            "long": {"window": request.window, "overlap": request.overlap_of(scale), "adain": request.adain},
        }
        return self._clip(latent, (asked, request.fps), said, request.seed, settings)

    def _sampled(
        self,
        passes: Sequence[Pass],
        clip: LatentClip,
        prompts: Prompts,
        noise: SeededNoise,
        host: Host,
        conditions: Conditions,
        settings: Settings,
    ) -> Tensor:
        with shared(self.transformer, self.sharing):
            if self.upscaler is None:
                return sample(passes[0], clip, prompts, noise=noise, host=host, conditions=conditions)
            upscaling = Upscaling(self.upscaler, self.vae, settings.adain_factor)
            return generate_two_stage(
                passes, clip, prompts, upscaling, noise=(noise, noise), host=host, conditions=conditions
            )

    @property
    def _processes(self) -> int:
        return 1 if self.sharing is None else self.sharing.size

    def _say_division(self, passes: Sequence[Pass], notes: Notes) -> None:
        if self._processes > 1:
            for sentence in dict.fromkeys(describe_division(each, self._processes) for each in passes):
                notes(sentence)

    def _check_alike(self, passes: Sequence[Pass], **said: Any) -> None:
        """Raises ConfigError: the processes of a group would not make the same clip, or not by the same arithmetic."""
        if self.sharing is None:
            return
        check_alike(
            self.sharing,
            **said,
            passes=[_pass_record(each) for each in passes],
            loras=[(item.lora.path.name, item.strength) for item in self.loras],
            **self._computing(),
        )

    def _clip(
        self,
        latent: Tensor,
        canvas: tuple[PixelShape, Fraction],
        record: Mapping[str, Any],
        seed: int,
        settings: Settings,
    ) -> Clip:
        (asked, rate), two = canvas, self.upscaler is not None
        decoding = settings.decoding("second" if two else "one")
        decoder = ClipDecoder(
            self.vae, decoding, asked, seed, self.placement, self.tiling, two, self.runs, self.sharing
        )
        return Clip(latent, asked, rate, record, decoder, self.vae_file)

    def _encoded(self, positive: Sequence[Prompt], negative: Sequence[Prompt | None], host: Host) -> list[Prompts]:
        """The prompts of every clip. Each text is encoded once, and all of them while T5 is in its place."""
        texts = list(dict.fromkeys(text for text in (*positive, *negative) if isinstance(text, str)))
        made = encode_prompts(self.text_encoder, texts, host=host, kept=self.prompts) if texts else ()
        encoded = dict(zip(texts, made, strict=True))

        def of(text: Prompt) -> EncodedPrompt:
            return encoded[text] if isinstance(text, str) else text

        return [
            Prompts(of(text), None if other is None else of(other))
            for text, other in zip(positive, negative, strict=True)
        ]

    def _record(self, passes: Sequence[Pass], decoding: Decoding) -> dict[str, Any]:
        """The models and the passes of a run, as JSON values."""
        return {
            **self.sources,
            "loras": [record.lora_of(item) for item in self.loras],
            **self.origin,
            "made_with": record.versions(),
            **self._computing(),
            "versions": list(self.info.versions),
            "passes": [_pass_record(each) for each in passes],
            "tone_map_compression_ratio": decoding.tone_map,
            "decode_timestep": decoding.timestep,
            "decode_noise_scale": decoding.noise_scale,
        }

    def _outline(self, placement: DevicePlacement, upscaler: LatentUpsampler | None) -> Outline:
        """What a clip takes, without reading the text encoder."""
        encoder = (self.text_encoder.outline, self.text_encoder.config)
        bfloat16, kernels = placement.card is None or placement.card.bfloat16, placement.kernels
        models = Outline(self.transformer, self.vae, self.info, encoder, upscaler, kernels=kernels, bfloat16=bfloat16)
        return replace(models, converted=sum(each.total for each in models.weights.values())) if self.copied else models

    def _computing(self) -> dict[str, Any]:
        """By which kernels the clip is made; nothing where nothing was chosen on a CPU."""
        placement = self.placement
        if isinstance(placement, DevicePlacement) and placement.card is not None:
            return {"kernels": placement.card.to_json()}
        kernels = placement.kernels
        return {} if kernels is None or not kernels.origin else {"kernels": kernels.to_json()}

    def _size(self, asked: PixelShape, settings: Settings, notes: Notes) -> PixelShape:
        """The size of the first pass, or of the only one."""
        scale = self.vae.config.scale_factors
        if self.upscaler is not None:
            size = first_pass_size(asked, scale, settings.downscale_factor)
            check_upscalable(self.upscaler, size.latent(scale))
            return size
        size = asked.padded(scale)
        if size != asked:
            notes(f"Made with {size.frames} frames of {size.width}x{size.height} pixels, then cropped to your size.")
        return size

    def _passes(self, settings: Settings, size: PixelShape) -> list[Pass]:
        grid = size.latent(self.vae.config.scale_factors)
        stages = tokens_of_passes(grid, two=self.upscaler is not None)
        return [
            Pass.of(
                self.transformer,
                settings,
                which,
                count,
                scheduler=self.info.scheduler,
                loras=self.loras,
                lora_mode=self.lora_mode,
            )
            for which, count in stages
        ]

    def _negative(self, passes: Sequence[Pass], asked: Prompt | None, recipe: Recipe, notes: Notes) -> Prompt | None:
        """The negative prompt, if a pass needs one."""
        if any(each.is_guided for each in passes):
            return recipe.negative_prompt if asked is None else asked
        if asked is not None:
            doubt("The negative prompt has no effect: this recipe does not use guidance.", notes)
        return None


def _pass_record(run_pass: Pass) -> dict[str, Any]:
    record = {"sigmas": run_pass.sigmas.tolist(), "guidance": asdict(run_pass.guidance)}
    return {**record, "step_cache": run_pass.step_cache} if run_pass.step_cache else record
