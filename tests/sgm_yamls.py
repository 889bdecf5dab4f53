"""YAML files with the keys of sgm's configs/, written by the tests."""

import pathlib

import yaml

MODULES = 'sgm.modules'
DIFFUSION = f'{MODULES}.diffusionmodules'
ENCODERS = f'{MODULES}.encoders.modules'
CODER = {
    'attn_type': 'vanilla-xformers',
    'double_z': True,
    'z_channels': 4,
    'resolution': 256,
    'in_channels': 3,
    'out_ch': 3,
    'ch': 128,
    'ch_mult': [1, 2, 4, 4],
    'num_res_blocks': 2,
    'attn_resolutions': [],
    'dropout': 0.0,
}


def node(target: str, **params) -> dict:
    return {'target': target, 'params': params} if params else {'target': target}


def write(path: pathlib.Path, **root) -> pathlib.Path:
    path.write_text(yaml.safe_dump(root, sort_keys=False))
    return path


def engine(**params) -> dict:
    return {'target': 'sgm.models.diffusion.DiffusionEngine', 'params': params}


def legacy_ddpm() -> dict:
    return node(f'{DIFFUSION}.discretizer.LegacyDDPMDiscretization')


def discrete(scaling: str) -> dict:
    return node(
        f'{DIFFUSION}.denoiser.DiscreteDenoiser',
        num_idx=1000,
        scaling_config=node(f'{DIFFUSION}.denoiser_scaling.{scaling}'),
        discretization_config=legacy_ddpm(),
    )


def embedder(
    target: str, input_key: str, trained: bool = False, ucg=None, legacy_ucg=None, **params
):
    found = {'is_trainable': trained, 'input_key': input_key}
    if ucg is not None:
        found['ucg_rate'] = ucg
    if legacy_ucg is not None:
        found['legacy_ucg_value'] = legacy_ucg
    return {**found, **node(f'{ENCODERS}.{target}', **params)}


def size(key: str, **options) -> dict:
    return embedder('ConcatTimestepEmbedderND', key, outdim=256, **options)


def conditioner(*embedders: dict) -> dict:
    return node(f'{MODULES}.GeneralConditioner', emb_models=list(embedders))


def autoencoder_kl(**more) -> dict:
    identity = node('torch.nn.Identity')
    return node(
        'sgm.models.autoencoder.AutoencoderKL',
        embed_dim=4,
        monitor='val/rec_loss',
        ddconfig=CODER,
        lossconfig=identity,
        **more,
    )


def sdxl_base() -> dict:
    return engine(
        scale_factor=0.13025,
        disable_first_stage_autocast=True,
        denoiser_config=discrete('EpsScaling'),
        network_config=node(
            f'{DIFFUSION}.openaimodel.UNetModel',
            adm_in_channels=2816,
            num_classes='sequential',
            use_checkpoint=True,
            in_channels=4,
            out_channels=4,
            model_channels=320,
            attention_resolutions=[4, 2],
            num_res_blocks=2,
            channel_mult=[1, 2, 4],
            num_head_channels=64,
            use_linear_in_transformer=True,
            transformer_depth=[1, 2, 10],
            context_dim=2048,
            spatial_transformer_attn_type='softmax-xformers',
        ),
        conditioner_config=conditioner(
            embedder('FrozenCLIPEmbedder', 'txt', layer='hidden', layer_idx=11),
            embedder(
                'FrozenOpenCLIPEmbedder2',
                'txt',
                arch='ViT-bigG-14',
                version='laion2b_s39b_b160k',
                freeze=True,
                layer='penultimate',
                always_return_pooled=True,
                legacy=False,
            ),
            size('original_size_as_tuple'),
            size('crop_coords_top_left'),
            size('target_size_as_tuple'),
        ),
        first_stage_config=autoencoder_kl(),
    )


def sdxl_refiner() -> dict:
    model = sdxl_base()
    model['params']['network_config']['params'].update(
        adm_in_channels=2560,
        model_channels=384,
        channel_mult=[1, 2, 4, 4],
        transformer_depth=4,
        context_dim=[1280, 1280, 1280, 1280],
    )
    text = model['params']['conditioner_config']['params']['emb_models'][1]
    model['params']['conditioner_config'] = conditioner(
        text,
        size('original_size_as_tuple'),
        size('crop_coords_top_left'),
        size('aesthetic_score'),
    )
    return model


def sd_2_1_768() -> dict:
    coder = {k: v for k, v in CODER.items() if k != 'attn_type'}
    stage = autoencoder_kl()
    stage['params']['ddconfig'] = coder
    return engine(
        scale_factor=0.18215,
        denoiser_config=discrete('VScaling'),
        network_config=node(
            f'{DIFFUSION}.openaimodel.UNetModel',
            use_checkpoint=True,
            in_channels=4,
            out_channels=4,
            model_channels=320,
            attention_resolutions=[4, 2, 1],
            num_res_blocks=2,
            channel_mult=[1, 2, 4, 4],
            num_head_channels=64,
            use_linear_in_transformer=True,
            transformer_depth=1,
            context_dim=1024,
        ),
        conditioner_config=conditioner(
            embedder('FrozenOpenCLIPEmbedder', 'txt', freeze=True, layer='penultimate')
        ),
        first_stage_config=stage,
    )


def svd() -> dict:
    coder = {**CODER, 'attn_type': 'vanilla'}
    return engine(
        scale_factor=0.18215,
        disable_first_stage_autocast=True,
        denoiser_config=node(
            f'{DIFFUSION}.denoiser.Denoiser',
            scaling_config=node(f'{DIFFUSION}.denoiser_scaling.VScalingWithEDMcNoise'),
        ),
        network_config=node(
            f'{DIFFUSION}.video_model.VideoUNet',
            adm_in_channels=768,
            num_classes='sequential',
            use_checkpoint=True,
            in_channels=8,
            out_channels=4,
            model_channels=320,
            attention_resolutions=[4, 2, 1],
            num_res_blocks=2,
            channel_mult=[1, 2, 4, 4],
            num_head_channels=64,
            use_linear_in_transformer=True,
            transformer_depth=1,
            context_dim=1024,
            spatial_transformer_attn_type='softmax-xformers',
            extra_ff_mix_layer=True,
            use_spatial_context=True,
            merge_strategy='learned_with_images',
            video_kernel_size=[3, 1, 1],
        ),
        conditioner_config=conditioner(
            embedder(
                'FrozenOpenCLIPImagePredictionEmbedder',
                'cond_frames_without_noise',
                n_cond_frames=1,
                n_copies=1,
                open_clip_embedding_config=node(
                    f'{ENCODERS}.FrozenOpenCLIPImageEmbedder', freeze=True
                ),
            ),
            size('fps_id'),
            size('motion_bucket_id'),
            embedder(
                'VideoPredictionEmbedderWithEncoder',
                'cond_frames',
                disable_encoder_autocast=True,
                n_cond_frames=1,
                n_copies=1,
                is_ae=True,
                encoder_config=node(
                    'sgm.models.autoencoder.AutoencoderKLModeOnly', embed_dim=4, ddconfig=CODER
                ),
            ),
            size('cond_aug'),
        ),
        first_stage_config=node(
            'sgm.models.autoencoder.AutoencodingEngine',
            loss_config=node('torch.nn.Identity'),
            regularizer_config=node(
                f'{MODULES}.autoencoding.regularizers.DiagonalGaussianRegularizer'
            ),
            encoder_config=node(f'{DIFFUSION}.model.Encoder', **coder),
            decoder_config=node(
                f'{MODULES}.autoencoding.temporal_ae.VideoDecoder',
                **coder,
                video_kernel_size=[3, 1, 1],
            ),
        ),
    )


def training_parts(batch_size: int) -> dict:
    return {
        'lightning': {
            'modelcheckpoint': {'params': {'every_n_train_steps': 5000}},
            'callbacks': {
                'image_logger': {
                    'target': 'main.ImageLogger',
                    'params': {'batch_frequency': 700, 'max_images': 8},
                }
            },
            'trainer': {'devices': '0,', 'accumulate_grad_batches': 2, 'max_epochs': 20},
        },
        'data': {
            'target': 'sgm.data.dataset.StableDataModuleFromConfig',
            'params': {
                'train': {
                    'datapipeline': {
                        'urls': ['DATA_PATH'],
                        'postprocessors': [
                            {
                                'target': 'sdata.mappers.TorchVisionImageTransforms',
                                'params': {
                                    'key': 'jpg',
                                    'transforms': [
                                        {
                                            'target': 'torchvision.transforms.Resize',
                                            'params': {'size': 192, 'interpolation': 3},
                                        }
                                    ],
                                },
                            }
                        ],
                    },
                    'loader': {'batch_size': batch_size, 'num_workers': 6},
                }
            },
        },
    }


def loss(weighting: str, **params) -> dict:
    return node(
        f'{DIFFUSION}.loss.StandardDiffusionLoss',
        loss_weighting_config=node(f'{DIFFUSION}.loss_weighting.{weighting}'),
        sigma_sampler_config=node(
            f'{DIFFUSION}.sigma_sampling.DiscreteSampling',
            num_idx=1000,
            discretization_config=legacy_ddpm(),
        ),
        **params,
    )


def sampler(scale: float) -> dict:
    return node(
        f'{DIFFUSION}.sampling.EulerEDMSampler',
        num_steps=50,
        discretization_config=legacy_ddpm(),
        guider_config=node(f'{DIFFUSION}.guiders.VanillaCFG', scale=scale),
    )


def mnist_cond() -> dict:
    return engine(
        denoiser_config=node(
            f'{DIFFUSION}.denoiser.Denoiser',
            scaling_config=node(f'{DIFFUSION}.denoiser_scaling.EDMScaling', sigma_data=1.0),
        ),
        network_config=node(
            f'{DIFFUSION}.openaimodel.UNetModel',
            in_channels=1,
            out_channels=1,
            model_channels=32,
            attention_resolutions=[],
            num_res_blocks=4,
            channel_mult=[1, 2, 2],
            num_head_channels=32,
            num_classes='sequential',
            adm_in_channels=128,
        ),
        conditioner_config=conditioner(
            embedder('ClassEmbedder', 'cls', trained=True, ucg=0.2, embed_dim=128, n_classes=10)
        ),
        first_stage_config=node('sgm.models.autoencoder.IdentityFirstStage'),
        loss_fn_config=node(
            f'{DIFFUSION}.loss.StandardDiffusionLoss',
            loss_weighting_config=node(f'{DIFFUSION}.loss_weighting.EDMWeighting', sigma_data=1.0),
            sigma_sampler_config=node(f'{DIFFUSION}.sigma_sampling.EDMSampling'),
        ),
        sampler_config=node(
            f'{DIFFUSION}.sampling.EulerEDMSampler',
            num_steps=50,
            discretization_config=node(f'{DIFFUSION}.discretizer.EDMDiscretization'),
            guider_config=node(f'{DIFFUSION}.guiders.VanillaCFG', scale=3.0),
        ),
    )


def clipl_legacy() -> dict:
    """As sgm's oldest files: modules under ldm, and the weighting beside the scaling."""
    denoiser = discrete('EpsScaling')
    denoiser['params']['weighting_config'] = node(f'{DIFFUSION}.denoiser_weighting.EpsWeighting')
    own = loss('EpsWeighting')
    del own['params']['loss_weighting_config']
    model = engine(
        scale_factor=0.13025,
        scheduler_config=node(
            'sgm.lr_scheduler.LambdaLinearScheduler',
            warm_up_steps=[10000],
            cycle_lengths=[10000000000000],
            f_start=[1e-6],
            f_max=[1.0],
            f_min=[1.0],
        ),
        denoiser_config=denoiser,
        network_config=node(
            f'{DIFFUSION}.openaimodel.UNetModel',
            use_checkpoint=True,
            use_fp16=True,
            in_channels=4,
            out_channels=4,
            model_channels=320,
            attention_resolutions=[1, 2, 4],
            num_res_blocks=2,
            channel_mult=[1, 2, 4, 4],
            num_head_channels=64,
            num_classes='sequential',
            adm_in_channels=1792,
            num_heads=1,
            use_spatial_transformer=True,
            transformer_depth=1,
            context_dim=768,
            spatial_transformer_attn_type='softmax-xformers',
        ),
        conditioner_config=conditioner(
            embedder(
                'FrozenCLIPEmbedder',
                'txt',
                trained=True,
                ucg=0.1,
                legacy_ucg='',
                always_return_pooled=True,
            ),
            size('original_size_as_tuple', ucg=0.1),
            size('crop_coords_top_left', ucg=0.1),
        ),
        first_stage_config=autoencoder_kl(ckpt_path='CKPT_PATH'),
        loss_fn_config=own,
        sampler_config=sampler(7.5),
    )
    return {**model, 'base_learning_rate': 1e-4}


def attnfree_logvar() -> dict:
    coder = {**CODER, 'attn_type': 'none', 'ch_mult': [1, 2, 4], 'num_res_blocks': 4}
    return {
        'base_learning_rate': 4.5e-6,
        'target': 'sgm.models.autoencoder.AutoencodingEngine',
        'params': {
            'input_key': 'jpg',
            'monitor': 'val/rec_loss',
            'loss_config': node(
                f'{MODULES}.autoencoding.losses.GeneralLPIPSWithDiscriminator',
                perceptual_weight=0.25,
                disc_start=20001,
                disc_weight=0.5,
                learn_logvar=True,
                regularization_weights={'kl_loss': 1.0},
            ),
            'regularizer_config': node(
                f'{MODULES}.autoencoding.regularizers.DiagonalGaussianRegularizer'
            ),
            'encoder_config': node(f'{DIFFUSION}.model.Encoder', **coder),
            'decoder_config': {
                'target': f'{DIFFUSION}.model.Decoder',
                'params': '${model.params.encoder_config.params}',
            },
        },
    }
