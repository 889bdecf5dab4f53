"""What is measured, in terms that both sides understand. Imports nothing: both environments read it."""

import dataclasses

HEAD_CHANNELS = 64
CHANNEL_MULT = (1, 2, 4, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoUNetCase:
    """One measurement of Stable Video Diffusion's U-Net, float32, on the CPU.

    Attributes:
      title: what is measured, for the table.
      model_channels: the width of the first level; 320 is SVD's.
      frames, size: a batch is one clip of `frames` latents of size x size.
      train: forward, backward and AdamW; otherwise the forward pass.
      warmups, repeats: calls that are not timed, and calls that are, in each process.
      modules: the two sides' files.
    """

    title: str
    model_channels: int
    frames: int
    size: int
    train: bool
    warmups: int
    repeats: int
    in_channels: int = 8
    out_channels: int = 4
    context_dim: int = 1024
    numbers: int = 3  # fps, motion bucket, noise augmentation: each becomes 256 sinusoids
    number_dim: int = 256
    modules: tuple[str, str] = ('ours_video_unet', 'torch_video_unet')

    @property
    def load(self) -> str:
        """What one call works on."""
        return f'{self.frames} frames of {self.size}x{self.size} latents, batch 1'


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureCase:
    """A forward pass of one part of SDXL base, float32, on the CPU, batch 1.

    Attributes:
      title: what is measured, for the table.
      part: 'unet' or 'decoder'.
      size: of the latents.
      warmups, repeats: calls that are not timed, and calls that are, in each process.
      modules: the two sides' files.
    """

    title: str
    part: str
    size: int
    warmups: int
    repeats: int
    modules: tuple[str, str] = ('ours_pictures', 'torch_pictures')

    @property
    def load(self) -> str:
        """What one call works on."""
        return f'latents of {self.size}x{self.size}, batch 1'


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataCase:
    """Batches from files, read and made ready by as many workers as there are threads.

    Attributes:
      title: what is measured, for the table.
      kind: 'pictures' (512 pixels and more, to crops of `size`) or 'clips' (of 720 lines, to `size`).
      batch: examples of a batch.
      frames, size: of an example.
      batches: timed together, as one call.
      warmups, repeats: calls that are not timed, and calls that are, in each process.
      modules: the two sides' files.
    """

    title: str
    kind: str
    batch: int
    size: int
    batches: int
    frames: int = 1
    warmups: int = 1
    repeats: int = 3
    modules: tuple[str, str] = ('ours_data', 'torch_data')

    @property
    def load(self) -> str:
        """What one call works on."""
        return f'{self.batches} batches of {self.batch}'


CASES = {
    'svd_forward': VideoUNetCase(
        title='full-size SVD VideoUNet, forward',
        model_channels=320,
        frames=14,
        size=32,
        train=False,
        warmups=1,
        repeats=2,
    ),
    'small_train': VideoUNetCase(
        title='VideoUNet of 64 model channels, training step (forward, backward, AdamW)',
        model_channels=64,
        frames=8,
        size=32,
        train=True,
        warmups=2,
        repeats=6,
    ),
    'sdxl_forward': PictureCase(
        title='full-size SDXL base U-Net, forward',
        part='unet',
        size=64,
        warmups=1,
        repeats=2,
    ),
    'decoder_512': PictureCase(
        title='the f8 decoder of SDXL, to 512x512 pixels',
        part='decoder',
        size=64,
        warmups=1,
        repeats=3,
    ),
    'pictures': DataCase(
        title='512 pixel jpegs to crops of 256x256',
        kind='pictures',
        batch=16,
        size=256,
        batches=24,
    ),
    'clips': DataCase(
        title='windows of 8 frames from 720p h264, at 256x256',
        kind='clips',
        batch=2,
        frames=8,
        size=256,
        batches=12,
    ),
}
