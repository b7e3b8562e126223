"""docs/migration.md covers every parameter of the packages that users come from; its nodes and inputs exist here."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path

import pytest

import ltxkit
from ltxkit.cli import main
from ltxkit.headless.host import PlainHost
from ltxkit.headless.migration.known import OF_OLD_PACK
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ltxkit.nodes.host import use_host
from ltxkit.nodes.replacements import REPLACEMENTS
from ltxkit.nodes.widgets import declared_inputs

# Lightricks/LTX-Video 5260738: InferenceConfig in inference.py
SCRIPT = re.findall(
    r"\w+",
    "prompt output_path pipeline_config seed height width num_frames frame_rate offload_to_cpu negative_prompt "
    "input_media_path image_cond_noise_scale conditioning_media_paths conditioning_strengths conditioning_start_frames",
)
# Lightricks/ComfyUI-LTXVideo 36fdaf5 (2025-07-16): the names in all INPUT_TYPES except those under tricks/
NODES = re.findall(
    r"\w+",
    "vae timestep scale seed model width height num_frames guider sampler sigmas noise optional_cond_images "
    "optional_cond_indices strength crop crf blur latents num_new_frames frame_overlap optional_guiding_latents "
    "guiding_latents optional_cond_image samples1 samples2 overlap axis images grain_intensity saturation positive "
    "negative latent image frame_idx blur_radius interpolation length batch_size reference factor samples "
    "upscale_model spatial_upsample temporal_upsample start_index end_index latents1 latents2 masks guiding_latent "
    "latent_idx guiding_strength temporal_tile_size temporal_overlap temporal_overlap_cond_strength horizontal_tiles "
    "vertical_tiles spatial_overlap adain_factor optional_positive_conditionings optional_negative_index_latents "
    "prompts clip invert_input_masks ignore_first_mask pooling_method grow_mask tapered_corners clamp_min clamp_max "
    "llm_name image_captioner_name prompt prompt_enhancer max_resulting_tokens image_prompt use_fp8_attention "
    "lora_name strength_model block_indices cfg stg rescale skip_steps_sigma_threshold cfg_star_rescale cfg_values "
    "stg_scale_values stg_rescale_values stg_layers_indices preset latents_cond_strength boost_latent_similarity "
    "images_cond_strengths last_frame_fix",
)


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs/migration.md").read_text()


def named(text: str) -> set[str]:
    return set(re.findall(r"`([\w./-]+)`", text))


def section(page: str, title: str) -> str:
    return page.partition(f"\n## {title}")[2].partition("\n## ")[0]


def test_every_parameter_of_the_official_script_and_its_files_is_there(page: str, repository: Path):
    recipes = json.loads((repository / "tests/data/official_recipes.json").read_text())
    keys = {key for recipe in recipes.values() for key in recipe["settings"]}
    keys |= {key for recipe in recipes.values() for part in recipe["settings"].values() for key in _keys(part)}
    assert {*SCRIPT, *keys} - {"first_pass", "second_pass"} - named(section(page, "Lightricks/LTX-Video")) == set()


def _keys(part: object) -> list[str]:
    return list(part) if isinstance(part, dict) else []


@pytest.mark.parametrize(
    "name", ["LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline", "LTXLatentUpsamplePipeline"]
)
def test_every_parameter_of_the_diffusers_pipelines_is_there(page: str, name: str):
    diffusers = pytest.importorskip("diffusers")
    parameters = set(inspect.signature(getattr(diffusers, name).__call__).parameters) - {"self"}
    assert parameters - named(section(page, "diffusers")) == set()


def test_every_parameter_of_the_nodes_of_july_2025_is_there(page: str):
    assert set(NODES) - named(section(page, "ComfyUI-LTXVideo")) == set()


def test_our_nodes_and_their_inputs_exist(page: str, tmp_path: Path):
    """`*Node*: a, b` names one of our nodes and its inputs."""
    with use_host(PlainHost(tmp_path, tmp_path, tmp_path)):
        inputs = {
            NODE_DISPLAY_NAME_MAPPINGS[name].removesuffix(" (LTXKit)"): set(declared_inputs(node_class))
            for name, node_class in NODE_CLASS_MAPPINGS.items()
        }
    templates = {"extend", "interpolate"}
    assert set(re.findall(r"(?<!\*)\*([A-Z][^*|]+)\*(?!\*)", page)) <= set(inputs) | templates
    pairs = re.findall(r"(?<!\*)\*([A-Z][^*|]+)\*: ((?:`\w+`(?:, )?)+)", page)
    assert len(pairs) > 30
    for node, listed in pairs:
        assert set(re.findall(r"`(\w+)`", listed)) <= inputs[node], node


def last_section(page: str) -> str:
    return section(page, "From nodes to the command line")


def node_inputs(text: str) -> set[tuple[str, str]]:
    """`*Node*: a, b`, and `*Node*: a and b`."""
    pairs = re.findall(r"(?<!\*)\*([A-Z][^*|]+)\*: ((?:`\w+`(?:, | and |))+)", text)
    return {(node, name) for node, listed in pairs for name in re.findall(r"`(\w+)`", listed)}


def test_the_last_section_says_of_every_input_what_the_other_two_call_it(page: str):
    """No input that the tables name is silent about `ltxkit generate` and the library."""
    tables = section(page, "Lightricks/LTX-Video") + section(page, "diffusers")
    assert node_inputs(tables) - node_inputs(last_section(page)) == set()


def test_the_options_and_fields_of_the_last_section_exist(page: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    options = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    named_options = set(re.findall(r"`(--[a-z0-9-]+)`", last_section(page)))
    assert {option for option in named_options if option != "--second-"} - options == set()


def test_the_last_section_names_what_python_takes(page: str):
    """Every name of the third column is an argument; and no argument for the settings of a run is missing there."""
    rows = [line.split("|")[1:4] for line in last_section(page).splitlines() if line.startswith("| ")][1:]
    of_load, of_generate = set[str](), set[str]()
    for _, _, python in rows:
        target = of_load if "`ltxkit.load`" in python else of_generate
        target |= set(re.findall(r"`(\w+)`", python))
    assert of_load <= set(inspect.signature(ltxkit.load).parameters)
    recipe = {field.name for field in dataclasses.fields(ltxkit.Recipe)}
    taken = (set(inspect.signature(Components.generate).parameters) | recipe) - {"self", "knobs"}
    assert of_generate <= taken
    apart = {"release", "recipe", "settings", "force", "progress", "notes", "timesteps", "downscale_factor"}
    assert taken - of_generate - apart == set()


def test_every_node_of_the_old_pack_is_in_the_table_with_what_becomes_of_it(page: str):
    """Each node type: replaced by what is registered, and converted or refused as the rules do."""
    rows = [line.split("|")[1:4] for line in section(page, "ComfyUI-LTXVideo").splitlines() if line.startswith("| ")]
    rows = [row for row in rows if re.match(r" (converted|refused)", row[2])]
    names = {name.strip(): row for row in rows for name in row[0].split(",")}
    aliases = {"LTXVSetVAEDecoderNoise", "DecoderNoise", "LTXVQ8Patch"}  # other names of nodes in the table
    assert set(OF_OLD_PACK) - aliases == set(names)
    replaced = {each.old: each.new for each in REPLACEMENTS}
    for name, row in names.items():
        title = NODE_DISPLAY_NAME_MAPPINGS.get(replaced.get(name, ""), "").removesuffix(" (LTXKit)")
        if title:
            assert f"*{title}*" in row[1], name
        elif name in replaced:
            assert "core's" in row[1], name
        else:
            assert row[1].strip().startswith(("-", "core has it")), name
