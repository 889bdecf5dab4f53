"""sgm's toy recipes: handwritten digits, in minutes on one GPU.

  python train.py --config configs/mnist.py:cond --workdir runs/mnist
  python sample.py --checkpoint runs/mnist --cls 7 --count 16 --output sevens.png

Variants, after sgm's configs/example_training/toy: '' (mnist.yaml: unconditional), 'cond'
(mnist_cond.yaml), 'l1' (mnist_cond_l1_loss.yaml), 'discrete_eps' (mnist_cond_discrete_eps.yaml), 'ema'
(mnist_cond_with_ema.yaml) and 'tiny' (cond at 16x16 with a smaller network: minutes on two CPU cores).

The first five are sgm's: 28x28, a U-Net of 32, 64 and 64 channels, batch 512, learning rate 1e-4. MNIST
comes from TensorFlow Datasets if it was prepared there; otherwise the 1797 digits inside scikit-learn take
its place, and the log says so. Where sgm keeps no averaged weights, ema_decay is 0: the average is the
weights themselves.
"""

import ml_collections

from sgm_jax.config import check_variant

VARIANTS = ('', 'cond', 'l1', 'discrete_eps', 'ema', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The config of a variant."""
    check_variant(__file__, variant, VARIANTS)
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {
        'name': 'diffusion',
        'network': {
            'name': 'unet',
            'in_channels': 1,
            'out_channels': 1,
            'model_channels': 32,
            'attention_resolutions': (),
            'num_res_blocks': 4,
            'channel_mult': (1, 2, 2),
            'num_head_channels': 32,
        },
        'denoiser': {'name': 'continuous', 'scaling': {'name': 'edm', 'sigma_data': 1.0}},
        'loss': {
            'name': 'standard',
            'sigma_sampling': {'name': 'edm'},
            'weighting': {'name': 'edm', 'sigma_data': 1.0},
        },
        'task': {'name': 'images'},
        'conditioner': (),
    }
    config.data = {'name': 'labelled', 'dataset': 'mnist', 'height': 28, 'width': 28}
    config.optimizer = {'name': 'adamw', 'learning_rate': 1e-4, 'weight_decay': 0.01}
    config.train = {
        'batch_size': 512,
        'steps': 2400,  # sgm's 20 epochs of MNIST
        'ema_decay': 0.9999 if variant == 'ema' else 0.0,
        'log_every': 50,
        'image_every': 1000,
        'checkpoint_every': 1000,
        'keep': 3,
    }
    config.mesh = {'data': -1, 'fsdp': 1, 'context': 1}
    config.sample = {
        'sampler': {'name': 'euler_edm'},
        'discretization': {'name': 'edm'},
        'guider': {'name': 'identity'},
        'steps': 50,
        'height': 28,
        'width': 28,
    }
    if variant:
        _by_class(config)
    if variant == 'l1':
        config.model.loss.kind = 'l1'
    if variant == 'discrete_eps':
        config.model.denoiser = {'name': 'discrete', 'scaling': {'name': 'eps'}}
        config.model.loss.sigma_sampling = {'name': 'discrete'}
        config.model.loss.weighting = {'name': 'eps'}
        config.sample.discretization = {'name': 'legacy_ddpm'}
    if variant == 'tiny':
        _shrink(config)
    return config


def _by_class(config: ml_collections.ConfigDict) -> None:
    config.model.network.update(num_classes='sequential', adm_in_channels=128)
    config.model.conditioner = (
        {
            'name': 'class',
            'input_key': 'cls',
            'embed_dim': 128,
            'n_classes': 10,
            'ucg_rate': 0.2,
            'is_trainable': True,
        },
    )
    config.sample.guider = {'name': 'vanilla_cfg', 'scale': 3.0}
    config.sample.zero = ('cls',)


def _shrink(config: ml_collections.ConfigDict) -> None:
    """What two CPU cores learn in minutes."""
    config.model.network.update(
        num_res_blocks=1,
        channel_mult=(1, 2),
        # With 32 channels each of GroupNorm's 32 groups is one channel, and takes away what is added to it.
        use_scale_shift_norm=True,
    )
    config.data.update(dataset='digits', height=16, width=16)
    config.optimizer.update(learning_rate=2e-3, b2=0.99)
    config.schedule = {'name': 'cosine', 'warmup_steps': 30}
    config.train.update(
        batch_size=64,
        steps=1000,
        ema_decay=0.99,
        log_every=50,
        image_every=500,
        checkpoint_every=500,
    )
    config.sample.update(steps=20, height=16, width=16)
