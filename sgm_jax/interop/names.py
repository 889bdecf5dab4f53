"""One table: how our modules call their parts, where sgm calls them otherwise.

Keys are 'file.Class'. Each entry maps an attribute to the path that sgm has in its place, relative to the
module; an attribute that is not listed keeps its name. '' puts the part's own parts in its place, and a
path that ends in '_' is joined to what follows without a dot.
"""

NAMES = {
    'layers.MLP': {'first': '0', 'second': '2'},
    'attention.CrossAttention': {'to_out': 'to_out.0'},
    'attention.FeedForward': {'proj': 'net.0.proj', 'out': 'net.2'},
    'transformer.SpatialVideoTransformer': {'spatial': ''},
    'resblock.ResBlock': {
        'in_norm': 'in_layers.0',
        'in_conv': 'in_layers.2',
        'emb': 'emb_layers.1',
        'out_norm': 'out_layers.0',
        'out_conv': 'out_layers.3',
        'skip': 'skip_connection',
    },
    'resblock.VideoResBlock': {'spatial': ''},
    'unet.Frame': {'out_norm': 'out.0', 'out_conv': 'out.2'},
    'unet.UNetModel': {'frame': ''},
    'video_unet.VideoUNet': {'frame': ''},
    'autoencoder.Level': {'attention': 'attn'},
    'video_decoder.VideoResnetBlock': {'spatial': '', 'blend': ''},
    'video_decoder.VideoAttentionBlock': {'spatial': '', 'blend': ''},
    'video_decoder.TimeMixConv': {'spatial': ''},
    'video_decoder.FrameConv': {'spatial': ''},
    'video_decoder.VideoDecoder': {'decoder': ''},
    'clip.SelfAttention': {'in_proj': 'in_proj_'},
    'clip.Block': {'mlp_in': 'mlp.c_fc', 'mlp_out': 'mlp.c_proj'},
    'clip_text.EncoderLayer': {
        'ln_1': 'layer_norm1',
        'attn': 'self_attn',
        'ln_2': 'layer_norm2',
        'mlp_in': 'mlp.fc1',
        'mlp_out': 'mlp.fc2',
    },
    'clip_text.CLIPTextModel': {
        'token_embedding': 'embeddings.token_embedding',
        'position_embedding': 'embeddings.position_embedding',
        'layers': 'encoder.layers',
    },
    't5.T5Block': {
        **{name: f'layer.0.SelfAttention.{name}' for name in 'qkvo'},
        'attention_norm': 'layer.0.layer_norm',
        **{name: f'layer.1.DenseReluDense.{name}' for name in ('wi_0', 'wi_1', 'wo')},
        'feed_forward_norm': 'layer.1.layer_norm',
    },
    't5.T5Encoder': {
        'token_embedding': 'shared',
        'position_bias': 'encoder.block.0.layer.0.SelfAttention.relative_attention_bias',
        'blocks': 'encoder.block',
        'final_norm': 'encoder.final_layer_norm',
    },
    'text.CLIPText': {'transformer': 'transformer.text_model'},
    'lpips.VGG16': {
        'conv1_1': 'slice1.0',
        'conv1_2': 'slice1.2',
        'conv2_1': 'slice2.5',
        'conv2_2': 'slice2.7',
        'conv3_1': 'slice3.10',
        'conv3_2': 'slice3.12',
        'conv3_3': 'slice3.14',
        'conv4_1': 'slice4.17',
        'conv4_2': 'slice4.19',
        'conv4_3': 'slice4.21',
        'conv5_1': 'slice5.24',
        'conv5_2': 'slice5.26',
        'conv5_3': 'slice5.28',
    },
    'lpips.AlexNet': {
        'conv1': 'slice1.0',
        'conv2': 'slice2.3',
        'conv3': 'slice3.6',
        'conv4': 'slice4.8',
        'conv5': 'slice5.10',
    },
    'lpips.LPIPS': {f'lin{i}': f'lin{i}.model.1' for i in range(5)},
    'discriminator.ActNorm': {'factor': 'scale'},
    'inception.Inception': {
        'conv_1a': 'Conv2d_1a_3x3',
        'conv_2a': 'Conv2d_2a_3x3',
        'conv_2b': 'Conv2d_2b_3x3',
        'conv_3b': 'Conv2d_3b_1x1',
        'conv_4a': 'Conv2d_4a_3x3',
        **{f'mixed_{level}': f'Mixed_{level}' for level in ('5b', '5c', '5d')},
        **{f'mixed_{level}': f'Mixed_{level}' for level in ('6a', '6b', '6c', '6d', '6e')},
        **{f'mixed_{level}': f'Mixed_{level}' for level in ('7a', '7b', '7c')},
    },
    'embedders.OpenCLIPImagePrediction': {'open_clip': 'open_clip.model'},
    'model.DiffusionModel': {
        'network': 'model.diffusion_model',
        'first_stage': 'first_stage_model',
    },
}

# How the names end of what some files hold and nothing needs: CLIP's places counted from 0, T5's table
# of tokens once more. They are passed over, and not written.
REPEATED = ('text_model.embeddings.position_ids', 'encoder.embed_tokens.weight')


# Attributes that are a number per channel, and in sgm one per channel of a batch of pictures: (1, c, 1, 1).
SPREAD = {'discriminator.ActNorm': ('loc', 'factor')}


def names_of(module: object) -> dict[str, str]:
    """The entry of a module's class, empty if sgm calls its parts as we do."""
    return NAMES.get(_class_of(module), {})


def spread_of(module: object) -> tuple[str, ...]:
    """The entry of a module's class in SPREAD."""
    return SPREAD.get(_class_of(module), ())


def _class_of(module: object) -> str:
    kind = type(module)
    return f'{kind.__module__.rsplit(".", 1)[-1]}.{kind.__name__}'
