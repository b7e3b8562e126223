"""The commands that write, and what they need. In a line, `~` is a space inside of a word, and ../in/NAME an input.

Commands of cli.COMMANDS that are not here write nothing; `READERS` are those of them that the faults of streams meet.
"""

from __future__ import annotations

from dataclasses import dataclass

CLIP = "--size 32x32 --frames 9"
DIGITS = f"--model ltxkit-digits {CLIP} --steps 1"
TRAINING = (
    "data.kind=digits data.sizes=[[9,16,16]] data.glyph_size=12 data.enlarged=0 data.validation_clips=2 "
    "optimization.steps=3 optimization.batch_size=2 optimization.warmup_steps=0 optimization.learning_rate=0.001 "
    "logging.log_every=1 logging.validate_every=3 logging.checkpoint_every=1 logging.keep=9 "
)
VAE = TRAINING + (
    "crop_frames=5 statistics_clips=8 kl.start=1 adversary.start=1 adversary.width=8 adversary.layers=2 "
    "model.latent_channels=8 model.patch_size=4 model.encoder_base_channels=8 model.decoder_base_channels=8 "
    "model.encoder_blocks=[[res_x,1],[compress_all_res,{multiplier:~2}],[res_x,1]] "
    "model.decoder_blocks=[[res_x,1],[compress_all,{multiplier:~2,~residual:~true}],[res_x,1]]"
)
TRANSFORMER = TRAINING + (
    "cache_clips=4 sample_steps=1 prompts=[the~digit~three] first_frame=0.3 optimization.ema_decay=0.9 "
    "model.in_channels=8 model.out_channels=8 model.num_layers=2 model.num_attention_heads=2 "
    "model.attention_head_dim=16 model.cross_attention_dim=32 model.caption_channels=16 "
    "text.width=16 text.layers=1 text.heads=2 text.vocabulary=64"
)
UPSCALER = TRAINING + "cache_clips=4 model.in_channels=8 model.mid_channels=32 model.num_blocks_per_stage=1"
LORA = (
    "initial=ltxkit-digits text.encoder=ltxkit-digits data.path=../in/clips data.sizes=[[9,32,32]] "
    "optimization.steps=3 optimization.precision=fp32 optimization.warmup_steps=0 logging.log_every=1 "
    "logging.validate_every=3 logging.checkpoint_every=1 logging.keep=9 validation_samples=1 lora.rank=2 "
    "prompts=[a~test] sample_steps=1"
)


def _set(settings: str) -> str:
    return " ".join(f"--set {setting}" for setting in settings.split())


TRAIN_VAE = f"train-vae --config moving-mnist-vae --output run {_set(VAE)}"
TRAIN = f"train --config moving-mnist --vae ../in/vae --output run {_set(TRANSFORMER)}"
TRAIN_UPSCALER = f"train --config digits-upscaler --vae ../in/vae --output run {_set(UPSCALER)}"
TRAIN_LORA = f"train --config lora-2b --vae ltxkit-digits --output run {_set(LORA)}"

# How each input is made: what a command writes under the second name.
INPUTS = {
    "tiny": ("make-tiny tiny", "tiny"),
    "clip.mp4": (f"generate a~seven {DIGITS} --seed 5 -o clip.mp4", "clip.mp4"),
    "vae": (TRAIN_VAE, "run"),
    "trained": (TRAIN, "run"),
    "upscaler": (TRAIN_UPSCALER, "run"),
    "graph.json": ("migrate ../in/original.json -o graph.json --format api", "graph.json"),
}


@dataclass(frozen=True)
class Writer:
    """A command that writes.

    line: writes to the working folder alone. again: what is added to it for the next try. after: the status where the
    results were there before: 0 they are made again, 2 they are refused. own: of two at once, each has a name of its
    own. resumes: it goes on from what it has done. status: of an undisturbed run. passing: bytes that it writes and
    removes again. prints: its result is what it prints, which a stdout that takes nothing loses.
    """

    name: str
    line: str
    again: str = ""
    after: int = 0
    own: bool = False
    resumes: bool = False
    status: int = 0
    passing: int = 0
    prints: bool = False

    @property
    def command(self) -> str:
        return self.line.split()[0]


WRITERS = (
    Writer(
        "generate",
        f"generate a~seven {DIGITS} -o clip.mp4 --save-latent clip.latent --contact-sheet sheet.png",
        again="--overwrite",
        after=2,
    ),
    Writer("generate-named", f"generate a~seven {DIGITS} --seed 3", own=True),
    Writer("generate-pictures", f"generate a~seven {DIGITS} -o frames/%03d.png", again="--overwrite", after=2),
    Writer(
        "generate-long",
        "generate a~seven --model ltxkit-digits --size 32x32 --steps 1 --long 17 --window 9 --overlap 1 -o clip.mp4 "
        "--keep-windows kept",
        again="--overwrite",
        after=2,
    ),
    Writer("run", "run demo-text --output out", own=True),
    Writer("run-clip", "run ../in/clip.mp4 --output out", own=True),
    Writer("migrate", "migrate ../in/original.json -o new.json", again="--overwrite", after=2),
    Writer("convert", "convert ../in/tiny/checkpoints/ltxv-tiny.safetensors new.safetensors --to fp8-scaled", after=2),
    Writer("convert-folder", "convert ../in/tiny/checkpoints/ltxv-tiny.safetensors new --to diffusers", after=2),
    Writer("convert-gguf", "convert ../in/tiny/checkpoints/ltxv-tiny.safetensors new.gguf --to gguf-q8_0", after=2),
    Writer("make-tiny", "make-tiny made"),
    Writer("sample", f"sample {DIGITS} --prompt a~seven -o clips"),
    Writer(
        "extend", "extend --model ltxkit-digits --steps 1 --video ../in/clip.mp4 --frames 8 --overlap 1 -o longer.mp4"
    ),
    Writer("reconstruct", f"reconstruct {DIGITS} --video ../in/clip.mp4 -o through.mp4"),
    Writer("bundle", "bundle --model ../in/trained --upscaler ../in/upscaler -o bundled", after=2),
    Writer("eval-digits", f"eval-digits {DIGITS} --glyph-size 20 --clips 1 -o score", status=1),
    Writer("train-vae", TRAIN_VAE, after=2, resumes=True),
    Writer("train", TRAIN, after=2, resumes=True),
    Writer("train-upscaler", TRAIN_UPSCALER, after=2, resumes=True),
    Writer("train-lora", TRAIN_LORA, after=2, resumes=True),
    Writer("data", "data check ../in/clips --set data.sizes=[[9,32,32]] --sheet clips.png"),
    Writer("caption", "caption pictures --model ../in/vision"),
    Writer("split", "split ../in/clip.mp4 -o scenes --shortest 0.1 --longest 0.2"),
    Writer("fetch", "fetch spatial-0.9.8 --only --yes --models models"),
    Writer("bench", "bench --tiny --threads 1 --rounds 1 --folder . --only decode", passing=16_000_000, prints=True),
)

READERS = (
    "inspect ltxkit-digits",
    "inspect ../in/clip.mp4",
    "plan ltxkit-digits --size 64x64 --frames 25",
    "run --list",
    "doctor",
    "completion bash",
    "fetch",
    "generate --help",
    "--version",
)
