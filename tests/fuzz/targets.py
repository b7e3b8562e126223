"""Every parser of untrusted bytes, by name."""

from __future__ import annotations

import datasets_targets
import graph_targets
import media_targets
import service_targets
import settings_targets
import weights_targets
from target import Target

TARGETS: dict[str, Target] = {
    **weights_targets.TARGETS,
    **graph_targets.TARGETS,
    **settings_targets.TARGETS,
    **media_targets.TARGETS,
    **datasets_targets.TARGETS,
    **service_targets.TARGETS,
}
