"""The LTX-Video core: pure PyTorch, no ComfyUI, no global state, no printing."""
