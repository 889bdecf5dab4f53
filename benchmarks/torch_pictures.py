"""The peer's side: diffusers' U-Net and autoencoder of SDXL on PyTorch, as its users run them.

.bench-venv/bin/python -m benchmarks.torch_pictures sdxl_forward
"""

from benchmarks import process
from benchmarks.cases import PictureCase


def measure(case: PictureCase, threads: int) -> dict:
    """Times `case` in eager mode: channels first, PyTorch's own attention, its own initial values."""
    import diffusers
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    z = torch.randn(1, 4, case.size, case.size)
    if case.part == 'unet':
        network = unet(diffusers)
        parameters = network.parameters()
        context = torch.randn(1, 77, 2048)
        added = {'text_embeds': torch.randn(1, 1280), 'time_ids': torch.full((1, 6), 512.0)}
        timestep = torch.tensor([500.0])
        forward = lambda: network(z, timestep, context, added_cond_kwargs=added, return_dict=False)[
            0
        ]
    else:
        network = autoencoder(diffusers)
        parts = (network.post_quant_conv, network.decoder)
        parameters = [p for part in parts for p in part.parameters()]
        forward = lambda: network.decode(z, return_dict=False)[0]
    network.eval()
    times, result = process.timed(torch.inference_mode()(forward), case)
    if not bool(torch.isfinite(result).all()):
        raise FloatingPointError('the network returned numbers that are not finite')
    return dict(
        name=f'diffusers {diffusers.__version__} on torch {torch.__version__}',
        seconds=times,
        parameters=sum(p.numel() for p in parameters),
    )


def unet(diffusers):
    """SDXL base's, by its published config.json."""
    return diffusers.UNet2DConditionModel(
        sample_size=128,
        in_channels=4,
        out_channels=4,
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'),
        block_out_channels=(320, 640, 1280),
        layers_per_block=2,
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type='text_time',
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def autoencoder(diffusers):
    """SDXL's, by its published config.json."""
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=('DownEncoderBlock2D',) * 4,
        up_block_types=('UpDecoderBlock2D',) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=1024,
    )


if __name__ == '__main__':
    process.main(measure)
