"""Models that tests make: BERT in a GGUF file, its weights by lot; one with another template."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
from gguf import GGUFWriter, PoolingType
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata
from numpy.typing import NDArray

WIDTH, WINDOW, HEADS = 32, 64, 4
CONTROL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def write_bert(
    path: Path, texts: list[str], pooling: PoolingType | None = PoolingType.MEAN, *, seed: int = 1
) -> dict[str, NDArray[np.float32]]:
    """A model of one layer that knows the words of `texts`; its weights by llama.cpp's names."""
    words = sorted({word for text in texts for word in re.findall(r"\w+", text.lower())})
    out = GGUFWriter(path, "bert")
    out.add_context_length(WINDOW)
    out.add_embedding_length(WIDTH)
    out.add_feed_forward_length(WIDTH)
    out.add_block_count(1)
    out.add_head_count(HEADS)
    out.add_layer_norm_eps(1e-12)
    out.add_causal_attention(False)
    if pooling is not None:
        out.add_pooling_type(pooling)
    out.add_tokenizer_model("bert")
    out.add_token_type_count(2)
    out.add_token_list([*CONTROL, *("\u2581" + word for word in words)])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    out.add_token_types([control] * len(CONTROL) + [normal] * len(words))
    out.add_pad_token_id(0)
    out.add_unk_token_id(1)
    out.add_bos_token_id(2)
    out.add_sep_token_id(3)
    weights = drawn(len(CONTROL) + len(words), np.random.default_rng(seed))
    for name, weight in weights.items():
        out.add_tensor(name, weight)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return weights


def drawn(tokens: int, dice: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Of a layer that does little: so a vector is mostly the words of its text."""
    weights = {
        "token_embd.weight": dice.standard_normal((tokens, WIDTH), np.float32),
        "position_embd.weight": 0.1 * dice.standard_normal((WINDOW, WIDTH), np.float32),
        "token_types.weight": np.zeros((2, WIDTH), np.float32),
    }
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"):
        weights[f"blk.0.{name}.weight"] = 0.1 * dice.standard_normal((WIDTH, WIDTH), np.float32)
        weights[f"blk.0.{name}.bias"] = np.zeros(WIDTH, np.float32)
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        weights[f"{name}.weight"] = np.ones(WIDTH, np.float32)
        weights[f"{name}.bias"] = np.zeros(WIDTH, np.float32)
    return weights


def with_template(model: Path, path: Path, template: str) -> None:
    """A copy of a model that carries another chat template."""
    reader = gguf.GGUFReader(model)
    writer = GGUFWriter(path, "llama", endianess=reader.endianess)
    new = MetadataDetails(gguf.GGUFValueType.STRING, template)
    copy_with_new_metadata(reader, writer, {gguf.Keys.Tokenizer.CHAT_TEMPLATE: new}, [])
