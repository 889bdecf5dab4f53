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
    'embedders.OpenCLIPImagePrediction': {'open_clip': 'open_clip.model'},
    'model.DiffusionModel': {
        'network': 'model.diffusion_model',
        'first_stage': 'first_stage_model',
    },
}


def names_of(module: object) -> dict[str, str]:
    """The entry of a module's class, empty if sgm calls its parts as we do."""
    kind = type(module)
    return NAMES.get(f'{kind.__module__.rsplit(".", 1)[-1]}.{kind.__name__}', {})
