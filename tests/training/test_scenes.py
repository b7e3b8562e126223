"""Long videos cut into scenes, by PySceneDetect, at one rate."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from ltxkit.cli import main
from ltxkit.ltx_core.media import read_video, video_fps, write_video

pytest.importorskip("scenedetect")

pytestmark = pytest.mark.slow  # PySceneDetect imports OpenCV


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of 2, 4 and 2 seconds at 24 frames per second; each a noise picture of its own colour."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    chunks = []
    for number, (seconds, colour) in enumerate(((2, (0.9, 0.1, 0.1)), (4, (0.1, 0.8, 0.1)), (2, (0.1, 0.1, 0.9)))):
        noise = torch.rand(64, 96, 1, generator=torch.Generator().manual_seed(number)) * 0.2
        picture = (torch.tensor(colour) + noise - 0.1).clamp(0, 1)
        chunks.append(picture.expand(24 * seconds, -1, -1, -1))
    write_video(path, chunks, fps=Fraction(24))
    return path


def test_scenes_become_clips_at_one_rate(film: Path, tmp_path: Path) -> None:
    assert main(["split", str(film), "-o", str(tmp_path), "--fps", "12", "--longest", "3"]) == 0
    clips = sorted(tmp_path.glob("*.mp4"))
    assert [clip.name for clip in clips] == [f"film-{number:03}.mp4" for number in (1, 2, 3, 4)]
    shown = [read_video(clip) for clip in clips]
    assert [video_fps(clip) for clip in clips] == [12] * 4
    assert [len(clip.frames) for clip in shown] == [24] * 4  # the middle scene is divided
    for clip, channel in zip(shown, (0, 1, 1, 2), strict=True):
        for frame in (clip.frames[0], clip.frames[-1]):
            assert int(frame.mean(dim=(0, 1)).argmax()) == channel


def test_the_command_again_writes_what_is_missing(film: Path, tmp_path: Path) -> None:
    command = ["split", str(film), "-o", str(tmp_path)]
    assert main(command) == 0
    (first, *others) = sorted(tmp_path.glob("*.mp4"))
    wanted = read_video(first).frames
    first.unlink()
    before = [path.stat().st_mtime_ns for path in others]
    assert main(command) == 0
    torch.testing.assert_close(read_video(first).frames, wanted)
    assert [path.stat().st_mtime_ns for path in others] == before


def test_short_scenes_are_counted_and_folders_kept(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in" / "below").mkdir(parents=True)
    (tmp_path / "in" / "below" / "x.mp4").write_bytes(film.read_bytes())
    (tmp_path / "in" / "broken.mp4").write_bytes(b"x")
    assert main(["split", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--shortest", "3"]) == 1
    assert [path.name for path in (tmp_path / "out" / "below").iterdir()] == ["x-002.mp4"]
    told = capsys.readouterr()
    assert "1 clips of 1 videos; 2 scenes were too short" in told.out + told.err
    assert "broken.mp4" in told.err
