"""The peer's side: diffusers' UNetSpatioTemporalConditionModel on PyTorch, as its users run it.

.bench-venv/bin/python -m benchmarks.torch_video_unet svd_forward
"""

from benchmarks import process
from benchmarks.cases import CHANNEL_MULT, HEAD_CHANNELS, VideoUNetCase


def measure(case: VideoUNetCase, threads: int) -> dict:
    """Times `case` in eager mode: channels first, PyTorch's own attention, its own initial values."""
    import diffusers
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    channels = tuple(case.model_channels * multiple for multiple in CHANNEL_MULT)
    levels = len(channels)
    network = diffusers.UNetSpatioTemporalConditionModel(
        in_channels=case.in_channels,
        out_channels=case.out_channels,
        # Attention at every level but the lowest, as sgm's attention_resolutions (4, 2, 1).
        down_block_types=('CrossAttnDownBlockSpatioTemporal',) * (levels - 1)
        + ('DownBlockSpatioTemporal',),
        up_block_types=('UpBlockSpatioTemporal',)
        + ('CrossAttnUpBlockSpatioTemporal',) * (levels - 1),
        block_out_channels=channels,
        addition_time_embed_dim=case.number_dim,
        projection_class_embeddings_input_dim=case.numbers * case.number_dim,
        layers_per_block=2,
        cross_attention_dim=case.context_dim,
        transformer_layers_per_block=1,
        num_attention_heads=tuple(c // HEAD_CHANNELS for c in channels),
        num_frames=case.frames,
    )
    x = torch.randn(1, case.frames, case.in_channels, case.size, case.size)
    target = torch.randn(1, case.frames, case.out_channels, case.size, case.size)
    context = torch.randn(1, 1, case.context_dim)
    numbers = torch.tensor([[6.0, 127.0, 0.02]])
    timestep = torch.tensor([0.5])
    forward = lambda: network(x, timestep, context, numbers, return_dict=False)[0]

    if case.train:
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, weight_decay=0.01)

        def step():
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(forward(), target)
            loss.backward()
            optimizer.step()
            return loss.detach()

    else:
        network.eval()
        step = torch.inference_mode()(forward)

    times, result = process.timed(step, case)
    if not bool(torch.isfinite(result).all()):
        raise FloatingPointError('the network returned numbers that are not finite')
    return dict(
        name=f'diffusers {diffusers.__version__} on torch {torch.__version__}',
        seconds=times,
        parameters=sum(p.numel() for p in network.parameters()),
    )


if __name__ == '__main__':
    process.main(measure)
