"""Graphs without ComfyUI: a runner, checks of the prompt, stand-ins for the core nodes that our workflows use."""
