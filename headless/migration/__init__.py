"""Graphs of ComfyUI-LTXVideo (July 2025) and of ComfyUI's native LTXV nodes, turned into graphs of ours."""
