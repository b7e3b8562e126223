@dataclass(frozen=True, eq=False)
class Components:
    """The parts of a VIDEO, with the names that ComfyUI's VideoComponents has."""

    images: Tensor
    frame_rate: Fraction
    audio: None = None


@dataclass(frozen=True, eq=False)
class VideoInMemory:
    """A VIDEO made of frames."""

    components: Components

    def get_components(self) -> Components:
        return self.components

    @property
    def rate(self) -> Fraction:
        return self.components.frame_rate

    def frames(self) -> Iterator[Tensor]:
        """The frames (f, h, w, 3), a few at a time."""
        yield self.components.images


class VideoInFile:
    """A VIDEO that is read when somebody asks for its frames."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get_components(self) -> Components:
        return self._components

    @property
    def rate(self) -> Fraction:
        return media.video_fps(self.path)

    def frames(self) -> Iterator[Tensor]:
        """As VideoInMemory, one by one: a long clip is never in memory as a whole."""
        return (frame[None] for frame in media.stream_video(self.path))

    @cached_property
    def _components(self) -> Components:
        clip = media.read_video(self.path)
        return Components(clip.frames, clip.fps)


