"""Pictures and clips in and out. Frames are (f, h, w, 3) float32 sRGB in [0, 1], as a ComfyUI IMAGE.

Every reader of the pack comes here: the library's conditions, the commands, the stand-ins for ComfyUI's nodes, the
training folder. What Pillow and PyAV open looks as a good player shows it; a file that they do not open is named in one
sentence. A file appears under its name only when it is complete: an interrupt or a full disk leaves nothing behind.
"""

from .clips import CLIP_SUFFIXES, Clip, is_clip, read_video, stream_video, video_fps
from .compression import compress
from .frames import (
    RESIZE_POLICIES,
    ResizeKernel,
    ResizePolicy,
    contact_sheet,
    crop_to_shape,
    resize,
    rgb_frames,
)
from .inputs import as_frames, as_masks
from .pictures import PICTURE_SUFFIXES, Picture, is_animated, read_image, read_picture, read_pictures
from .sound import SOUND_CODECS, Sound, read_sound
from .stills import write_image
from .tags import read_metadata
from .writing import write_clip, write_gif, write_video

__all__ = [
    "CLIP_SUFFIXES",
    "PICTURE_SUFFIXES",
    "RESIZE_POLICIES",
    "SOUND_CODECS",
    "Clip",
    "Picture",
    "ResizeKernel",
    "ResizePolicy",
    "Sound",
    "as_frames",
    "as_masks",
    "compress",
    "contact_sheet",
    "crop_to_shape",
    "is_animated",
    "is_clip",
    "read_image",
    "read_metadata",
    "read_picture",
    "read_pictures",
    "read_sound",
    "read_video",
    "resize",
    "rgb_frames",
    "stream_video",
    "video_fps",
    "write_clip",
    "write_gif",
    "write_image",
    "write_video",
]
