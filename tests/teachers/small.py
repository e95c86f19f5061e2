"""Small models in other libraries' own formats, for tests of teachers and of recipes."""

from __future__ import annotations

import json
from pathlib import Path

import torch

CHARACTERS = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "E": 5, "T": 6, "A": 7}


def small_ctc(folder: Path, kind: str = "Wav2Vec2", norm: str = "group") -> None:
    """wav2vec2 or HuBERT with a CTC head over a few letters, random weights, as transformers saves it."""
    import transformers

    folder.mkdir(exist_ok=True)
    config_class = getattr(transformers, f"{kind}Config")
    config = config_class(
        vocab_size=len(CHARACTERS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer", pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCTC")(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(CHARACTERS))
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(folder)
