"""From guiders, levels, samplers and noise to our Sample, with the values that the old graph had."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...ltx_core.sampling.samplers import SAMPLERS
from ...ltx_core.sampling.schedules import MOST_SHIFT, linear_quadratic, shift, uniform
from ...ltx_core.values import MOST_STEPS
from .graph import Blocked, Call, plain
from .values import Condition, Guider, Latent, Link, Noise, Picture, Reference, Sampler, Sigmas, Text

# Ours has one sampler for each of these of ComfyUI.
SAME_SAMPLERS = {"euler": "euler", "heun": "heun", "dpmpp_2m": "dpmpp_2m", "gradient_estimation": "gradient_estimation"}
FRESH_NOISE = ("ancestral", "sde", "lcm", "ddpm")
OFF = 1.0  # of our stg_rescale (sic); of the old pack's it is 0
ABOVE = 1e-6


def sampler_name(call: Call, name: str) -> str:
    """Our sampler for one of ComfyUI's."""
    if name in SAME_SAMPLERS and SAME_SAMPLERS[name] in SAMPLERS:
        return SAME_SAMPLERS[name]
    nearest = "stochastic" if any(word in name for word in FRESH_NOISE) else "euler"
    call.note(f"sampler {name} is not here, {nearest} is the nearest: other noise, another clip")
    return nearest


# ------------------------------------------------------------------------------------------------ levels


def listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def of_list(values: Sequence[float]) -> Sigmas:
    return Sigmas(tuple(values))


MOST_LEVELS = 1_000_000  # of a schedule of which a denoise keeps the end


def step_count(call: Call) -> int:
    """The steps of a node, within ComfyUI's own range."""
    steps = call.whole("steps", 20, most=MOST_STEPS)
    if steps < 1:
        raise Blocked(f"its steps are {steps}; expected at least 1; raise them")
    return steps


def scheduler_levels(call: Call, name: str, steps: int, model_shift: float) -> Sigmas:
    """ComfyUI's schedules by name, as it makes them for LTX-Video."""
    if name == "linear_quadratic":
        schedule = {"kind": "linear-quadratic", "steps": steps}
        return Sigmas(tuple(linear_quadratic(steps).tolist()), schedule)
    if name not in ("simple", "sgm_uniform", "normal"):
        call.note(f"schedule {name} is not here, simple is used in its place")
    return of_list([*(_shifted(1 - int(i * 10000 / steps) / 10000, model_shift) for i in range(steps)), 0.0])


def _shifted(level: float, mu: float) -> float:
    if abs(mu) > MOST_SHIFT:
        raise Blocked(f"its shift is {mu:g}; expected at most {MOST_SHIFT:g} to either side; lower it")
    return 0.0 if level <= 0 else math.exp(mu) / (math.exp(mu) + (1 / level - 1))


def ltxv_levels(call: Call, latent: Latent | None) -> Sigmas:
    """LTXVScheduler. Its tokens include the guides; ours counts the clip alone, so that a list is written then."""
    steps = step_count(call)
    high, low = call.number("max_shift", 2.05), call.number("base_shift", 0.95)
    terminal = call.number("terminal", 0.1) if call.switch("stretch", True) else None
    usual = (high, low, terminal) == (2.05, 0.95, 0.1)
    tokens = 4096 if latent is None else latent.tokens
    if tokens is None:
        if not usual:
            raise Blocked(
                "its levels depend on a size that another node computes; expected a size in a widget; write width, "
                "height and length into the empty latent"
            )
        assert latent is not None  # only a latent has an unknown size
        if latent.guides:
            call.note("the levels count the clip's own cells, not those of its guides")
        return Sigmas(None, {"kind": "shifted", "steps": steps, "latent": latent.link})
    mu = (high - low) / 3072 * tokens + low - (high - low) / 3072 * 1024
    values = tuple(shift(uniform(steps), mu, terminal or None).tolist())
    if usual and latent is not None and not latent.guides:
        return Sigmas(values, {"kind": "shifted", "steps": steps, "latent": latent.link})
    return of_list(values)


def split(sigmas: Sigmas, step: int) -> tuple[Sigmas, Sigmas]:
    """SplitSigmas: the levels to `step`, and those from there on."""
    if sigmas.values is None:
        raise Blocked(
            "it splits levels that are not known here; expected a list or a size in a widget; write the levels into "
            "Schedule (LTXKit)"
        )
    low = of_list(sigmas.values[step:])
    if sigmas.schedule is not None and step:
        low = Sigmas(low.values, {**sigmas.schedule, "skip_initial_steps": step})
    return of_list(sigmas.values[: step + 1]), sigmas if step == 0 else low


def schedule_link(call: Call, sigmas: Sigmas, skip_above: float, *, fresh: bool) -> Link:
    """Our Schedule for some levels. skip_above: levels above it are left out, where a pass starts from noise."""
    if sigmas.link is not None:
        if skip_above < 1:
            call.note(f"steps above {skip_above:g} are not skipped: the levels come from a node that stays")
        return sigmas.link
    values = sigmas.values
    skipped = 0
    if values is not None and skip_above < 1 and fresh:
        skipped = sum(value > skip_above for value in values[:-1])
        if skipped >= len(values) - 1:
            raise Blocked(f"all of its levels are above the {skip_above:g} that its guider skips; raise the threshold")
    elif skip_above < 1 and values is None:
        call.note(f"the guider skips steps above {skip_above:g}; write their number into skip_initial_steps")
    elif skip_above < 1 and values and values[0] > skip_above:
        call.note(f"the guider's skipping above {skip_above:g} has no counterpart for a clip that exists already")
    if sigmas.schedule is not None:
        before = int(sigmas.schedule.get("skip_initial_steps", 0))
        said = {**_SCHEDULE, **sigmas.schedule, "skip_initial_steps": before + skipped}
        return call.add("LTXKitCreateSchedule", said, title="Schedule")
    assert values is not None  # levels are known, or a schedule gives them, or a link
    values = values[skipped:]
    if len(values) < 2 or any(one <= other for one, other in itertools.pairwise(values)):
        raise Blocked(f"its levels are {listed(values)}; expected descending ones; correct the list")
    whole = values if values[-1] == 0 else (*values, 0.0)
    link = call.add("LTXKitCreateSchedule", {**_SCHEDULE, "kind": "list", "levels": listed(whole)}, title="Schedule")
    if values[-1] != 0:
        return call.add("SplitSigmas", {"sigmas": link, "step": len(values) - 1}, title="")
    return link


_SCHEDULE = {
    "kind": "list",
    "steps": 30,
    "levels": "",
    "denoise_strength": 1,
    "skip_initial_steps": 0,
    "skip_final_steps": 0,
}


# ------------------------------------------------------------------------------------------------ guidance


def constant_guidance(call: Call, scale: float) -> tuple[str, dict[str, Any]]:
    if scale < 1:
        call.note(f"cfg {scale:g} became 1: below 1 there is no guidance here")
    return "LTXKitCreateGuidance", {**_GUIDANCE, "guidance_scale": plain(max(scale, 1.0))}


def stg_guidance(call: Call, scale: float, stg: float, rescale: float, blocks: str) -> tuple[str, dict[str, Any]]:
    kind, inputs = constant_guidance(call, scale)
    said = {"stg_scale": plain(stg), "stg_blocks": blocks, "stg_rescale": rescaled(rescale)}
    _say_rescale(call, [stg], [rescale])
    return kind, {**inputs, **said}


def rescaled(value: float) -> float:
    """The old pack's rescale in our terms: there 0 is off and 1 rescales fully; here, as in the script, 1 is off."""
    return OFF if value == 0 else min(plain(value), 0.9999)


def _say_rescale(call: Call, scales: Sequence[float], values: Sequence[float]) -> None:
    if any(scale and value for scale, value in zip(scales, values, strict=False)):
        call.note("it rescaled predictions of the clip, LTXKit rescales velocities, as Lightricks' script does")


def step_guidance(call: Call, lists: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """STGGuiderAdvanced's lists: a level takes the entry of the smallest listed level that is not below it, and above
    all of them, or below none, the last entry. Ours takes the first entry that is not above the level; thus each
    entry gets the listed level after its own, and a millionth."""
    sigmas: Sequence[float] = lists["sigmas"]
    count = len(sigmas)
    columns = [lists["cfg_values"], lists["stg_scale_values"], lists["stg_rescale_values"], lists["stg_layers_indices"]]
    if not count or any(len(column) != count for column in columns):
        lengths = ", ".join(str(len(column)) for column in (sigmas, *columns))
        raise Blocked(f"its lists have {lengths} entries; expected equally many in each; correct them")
    # The first of equal levels counts, as in a search from the front.
    order = [i for i in sorted(range(count), key=lambda i: -sigmas[i]) if sigmas.index(sigmas[i]) == i]
    entries = list(order)
    starts = [sigmas[i] + ABOVE for i in order[1:]] + [0.0]
    if sigmas[order[0]] < 1:
        entries.insert(0, count - 1)
        starts.insert(0, sigmas[order[0]] + ABOVE)
    cfg, stg, rescale, blocks = ([column[i] for i in entries] for column in columns)
    if any(scale < 1 for scale in cfg):
        call.note("cfg below 1 became 1: below 1 there is no guidance here")
    _say_rescale(call, stg, rescale)
    return "LTXKitCreateStepGuidance", {
        "guidance_timesteps": ", ".join(f"{value:.7g}" for value in starts),
        "guidance_scale": listed([max(scale, 1.0) for scale in cfg]),
        "stg_scale": listed(stg),
        "stg_rescale": listed([rescaled(value) for value in rescale]),
        "stg_blocks": ", ".join(str(list(each)) for each in blocks),
        "stg_mode": "attention_values",
        "cfg_star": bool(lists["cfg_star_rescale"]),
        "guidance_rescale": 0,
    }


_GUIDANCE = {
    "guidance_scale": 1,
    "guidance_rescale": 0,
    "stg_scale": 0,
    "stg_blocks": "",
    "stg_mode": "attention_values",
    "stg_rescale": 1,
    "cfg_star": False,
}


# ------------------------------------------------------------------------------------------------ prompts, conditions


def encoded(call: Call, positive: Any, negative: Any) -> tuple[Link, Link]:
    """The two prompts, encoded by one node. Raises Blocked for conditionings that no text is known of."""
    if isinstance(positive, Link) and isinstance(negative, Link):
        return positive, negative
    texts = [each for each in (positive, negative) if isinstance(each, Text)]
    if not texts or any(not isinstance(each, Text | Link) for each in (positive, negative)):
        raise Blocked("no prompt is connected to it; expected CLIPTextEncode before it; connect one")
    rates = [text.frame_rate for text in texts if text.frame_rate is not None]
    said = {
        "text_encoder": texts[0].encoder,
        "positive": positive.text if isinstance(positive, Text) else "",
        "negative": negative.text if isinstance(negative, Text) else "",
        "frame_rate": plain(rates[0]) if rates else 25,
    }
    link = call.add("LTXKitEncodePrompt", said, title="Prompt")
    found = (link, Link(link.node, 1))
    return tuple(  # type: ignore[return-value]
        each if isinstance(each, Link) else ours for each, ours in zip((positive, negative), found, strict=True)
    )


def picture_link(call: Call, picture: Any) -> Link:
    """The frames of a picture as IMAGE. Raises Blocked where their number must be known and is not."""
    if isinstance(picture, Link):
        return picture
    if not isinstance(picture, Picture):
        raise Blocked("no picture is connected to it; connect one")
    if picture.crf:
        call.note("the compression of its picture applies to conditions alone")
    if picture.take > 0:
        said = {"image": picture.link, "batch_index": 0, "length": picture.take}
        return call.add("ImageFromBatch", said, title="")
    if picture.take < 0:
        if picture.count is None:
            raise Blocked(
                "it needs the last frames of a clip of unknown length; expected a length; set frame_load_cap of the "
                "loader, or cut the clip before"
            )
        said = {"image": picture.link, "batch_index": max(picture.count + picture.take, 0), "length": -picture.take}
        return call.add("ImageFromBatch", said, title="")
    return picture.link


def one_by_one(call: Call, picture: Picture, count: int) -> list[Picture]:
    """The single pictures of a batch, for conditions at `count` frames."""
    if count == 1 or len(picture.parts) == count:
        return list(picture.parts) if len(picture.parts) == count else [picture]
    batch = picture_link(call, Picture(picture.link, take=picture.take, count=picture.count))
    made: list[Picture] = []
    for index in range(count):
        said = {"image": batch, "batch_index": index, "length": 1}
        made.append(Picture(call.add("ImageFromBatch", said, title=""), picture.crf, count=1))
    return made


def conditions_link(call: Call, items: Sequence[Condition | Reference]) -> Link | None:
    """A chain of Condition and Reference nodes."""
    chain: Link | None = None
    for item in items:
        picture = item.picture
        if isinstance(item, Reference):
            image = picture_link(call, picture)
            said = {"image": image, "frame_rate": 0, "strength": plain(item.strength), "resize": "stretch"}
            chain = call.add("LTXKitAddReference", {**said, "conditions": chain}, title="Reference")
            continue
        if picture.crf > 63:
            call.note(f"compression {picture.crf} became 63, the strongest here")
        said = {
            "image": picture.link,
            "frame": item.frame,
            "strength": plain(item.strength),
            "resize": item.resize,
            "crf": min(picture.crf, 63),
            "take": picture.take,
        }
        chain = call.add("LTXKitAddCondition", {**said, "conditions": chain}, title="Condition")
    return chain


# ------------------------------------------------------------------------------------------------ the pass


def sampled(call: Call, guider: Guider, latent: Latent, noise: Noise, sampler: Sampler, sigmas: Sigmas) -> Latent:
    """Our Sample for one pass of native samplers."""
    positive, negative = encoded(call, guider.positive, guider.negative)
    conditions = conditions_link(call, latent.conditions)
    if conditions is not None and latent.vae is None:
        raise Blocked("its conditions need a VAE; connect the VAE of the model file")
    kind, said = guider.guidance
    schedule = schedule_link(call, sigmas, guider.skip_above, fresh=latent.is_empty and noise.seed is not None)
    inputs = {
        "model": guider.model.link,
        "positive": positive,
        "negative": negative,
        "latent": latent.link,
        "seed": 0 if noise.seed is None else noise.seed,
        "sampler": sampler_name(call, sampler.name),
        "condition_noise": 0,
        "levels": "own",
        "vae": None if conditions is None or latent.vae is None else latent.vae.link,
        "conditions": conditions,
        "schedule": schedule,
        "guidance": call.add(kind, said, title="Guidance"),
    }
    link = call.add("LTXKitSampleVideo", inputs)
    return Latent(link, latent.width, latent.height, latent.frames)
